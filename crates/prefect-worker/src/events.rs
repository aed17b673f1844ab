//! Events that a worker emits, and the resources in them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::event::{Event, Resource};
use prefect_api::flow_run::{Flow, FlowRun};
use prefect_api::id::EventId;
use prefect_api::work_pool::WorkPool;
use prefect_client::PREFECT_VERSION;
use prefect_client::socket::EventSender;

use crate::launcher::Infrastructure;
use crate::slug::resource_slug;

/// Who emits.
#[derive(Debug, Clone)]
pub(crate) struct Emitter {
    sender: EventSender,
    worker: Resource,
    /// Whether the infrastructure is containers: only those have events of their own.
    containers: bool,
}

/// What a run's events are about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    related: Vec<Resource>,
}

impl Subject {
    pub(crate) fn new(run: &FlowRun, deployment: Option<&Deployment>, flow: &Flow, pool: &WorkPool) -> Self {
        let mut tags: BTreeSet<&str> = run.tags.iter().map(String::as_str).collect();
        let mut related = Vec::new();
        if let Some(deployment) = deployment {
            tags.extend(deployment.tags.iter().map(String::as_str));
            related
                .push(Resource::of("deployment", deployment.id).role("deployment").named(&deployment.name));
        }
        related.push(Resource::of("flow", flow.id).role("flow").named(&flow.name));
        related.push(Resource::of("flow-run", run.id).role("flow-run").named(&run.name));
        related.extend(tags.into_iter().map(|tag| Resource::of("tag", tag).role("tag")));
        related.push(pool_resource(pool));
        Self { related }
    }
}

impl Emitter {
    pub(crate) fn new(sender: EventSender, worker: &str, kind: &str) -> Self {
        let worker = Resource::new(format!("prefect.worker.{kind}.{}", resource_slug(worker)))
            .named(worker)
            .with("prefect.version", PREFECT_VERSION)
            .with("prefect.worker-type", kind);
        Self { sender, worker, containers: kind == "docker" }
    }

    pub(crate) async fn started(&self, pool: &WorkPool) -> EventId {
        self.emit("prefect.worker.started", self.worker.clone(), vec![pool_resource(pool)], None).await
    }

    pub(crate) async fn stopped(&self, pool: &WorkPool, started: EventId) {
        self.emit("prefect.worker.stopped", self.worker.clone(), vec![pool_resource(pool)], Some(started))
            .await;
    }

    pub(crate) async fn submitted(&self, subject: &Subject) -> EventId {
        self.emit("prefect.worker.submitted-flow-run", self.worker.clone(), subject.related.clone(), None)
            .await
    }

    pub(crate) async fn executed(&self, subject: &Subject, pid: &str, code: i64, submitted: Option<EventId>) {
        let mut related = subject.related.clone();
        for resource in &mut related {
            if resource.get("prefect.resource.role") == Some("flow-run") {
                *resource = resource
                    .clone()
                    .with("prefect.infrastructure.identifier", pid)
                    .with("prefect.infrastructure.status-code", code.to_string());
            }
        }
        self.emit("prefect.worker.executed-flow-run", self.worker.clone(), related, submitted).await;
    }

    /// The container's status changed: `created`, `running`, `exited`. Other infrastructure has no such events.
    pub(crate) async fn container(
        &self,
        subject: &Subject,
        container: &Infrastructure,
        status: &str,
        follows: Option<EventId>,
    ) -> Option<EventId> {
        if !self.containers {
            return None;
        }
        let resource =
            Resource::new(format!("prefect.docker.container.{}", container.id)).named(&container.name);
        let mut related = subject.related.clone();
        related.push(self.worker.clone().role("worker"));
        Some(self.emit(&format!("prefect.docker.container.{status}"), resource, related, follows).await)
    }

    pub(crate) async fn creation_failed(&self, subject: &Subject) {
        if !self.containers {
            return;
        }
        let related = subject.related.clone();
        self.emit("prefect.docker.container.creation-failed", self.worker.clone(), related, None).await;
    }

    async fn emit(
        &self,
        name: &str,
        resource: Resource,
        related: Vec<Resource>,
        follows: Option<EventId>,
    ) -> EventId {
        let event = Event::new(name, Timestamp::now(), resource).related(related).follows(follows);
        let id = event.id;
        self.sender.send(event).await;
        id
    }
}

fn pool_resource(pool: &WorkPool) -> Resource {
    Resource::of("work-pool", pool.id).role("work-pool").named(&pool.name)
}
