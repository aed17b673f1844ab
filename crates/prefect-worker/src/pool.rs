//! The work pool as this worker sees it, kept fresh, and the worker's sign of life to the server: over the
//! worker channel where there is one, over REST where there is none.

use std::sync::Arc;
use std::time::Duration;

use prefect_api::channel::{CHANNEL_VERSION, Hello, ServerFrame, Snapshot};
use prefect_api::template::{JobTemplate, TemplateError};
use prefect_api::work_pool::{BaseJobTemplate, NewWorkPool, WorkPool, WorkPoolUpdate};
use prefect_client::Client;
use prefect_client::socket::{self, Channel};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::compatibility;
use crate::drift::Drift;
use crate::error::{Error, chain};
use crate::launcher::Launcher;
use crate::options::Options;
use crate::status::{PoolBoard, Pulse, ROUND};

const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// A work pool with its template, checked.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) record: WorkPool,
    /// A template may become wrong while we run: then its runs crash with this message.
    pub(crate) template: Result<JobTemplate, TemplateError>,
}

impl Pool {
    fn new(record: WorkPool, default: &BaseJobTemplate) -> Self {
        let template = if record.base_job_template.is_empty() { default } else { &record.base_job_template };
        let template = JobTemplate::parse(template);
        Self { record, template }
    }
}

/// Keeps the pool fresh and the worker alive in the eyes of the server.
pub(crate) struct Sync {
    client: Client,
    hello: Hello,
    kind: &'static str,
    default: BaseJobTemplate,
    pool: watch::Sender<Arc<Pool>>,
    board: PoolBoard,
    compare_versions: bool,
}

/// How a time over the channel ended.
enum Over {
    Stopped,
    Lost,
    Refused,
}

impl Sync {
    /// Registers the worker, which creates the pool if that is wanted and needed.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, has no such pool or one of another type, or a faulty template.
    pub(crate) async fn register(
        client: Client,
        options: &Options,
        launcher: &dyn Launcher,
        board: PoolBoard,
    ) -> Result<(Self, Option<Channel>, watch::Receiver<Arc<Pool>>), Error> {
        let kind = launcher.kind();
        let default = options.base_job_template.clone().unwrap_or_else(|| launcher.default_template());
        compatibility::learn(&client, board.board(), options.compare_versions).await?;
        let existing = client.read_work_pool(&options.pool).await?;
        match &existing {
            Some(pool) => check_existing(pool, kind)?,
            None if !options.create_pool => return Err(Error::UnknownPool { name: options.pool.clone() }),
            None => {}
        }
        let hello = Hello {
            consumer_id: Uuid::now_v7(),
            worker_name: options.name.clone(),
            worker_type: kind.to_owned(),
            heartbeat_interval_seconds: options.heartbeat.as_secs(),
            supported_channel_versions: vec![CHANNEL_VERSION],
            requested_capabilities: vec!["worker_heartbeat.v1", "work_pool_snapshot.v1"],
            work_queue_names: options.queues.clone(),
            create_pool_if_not_found: options.create_pool,
            default_base_job_template: default.clone(),
        };
        let (channel, record) = match Channel::connect(&client, &options.pool, hello.clone()).await {
            Ok((channel, ready)) => (Some(channel), ready.initial_snapshot.work_pool),
            Err(error) => {
                tracing::info!(error = chain(&error), "no worker channel, using REST");
                (None, sync_over_rest(&client, &hello, kind, &options.pool, &default).await?)
            }
        };
        check_existing(&record, kind)?;
        let (pool, receiver) = watch::channel(Arc::new(Pool::new(record, &default)));
        let compare_versions = options.compare_versions;
        let sync = Self { client, hello, kind, default, pool, board, compare_versions };
        sync.show(&receiver.borrow().record);
        Ok((sync, channel, receiver))
    }

    /// Keeps at it until `stop`.
    pub(crate) async fn run(self, channel: Option<Channel>, stop: CancellationToken, pulse: Pulse) {
        let mut channel = channel;
        let mut wanted = channel.is_some() || self.client.has_reached_server();
        let mut pause = Duration::from_secs(1);
        let mut next_try = Instant::now() + pause;
        let mut next_rest = Instant::now() + self.interval();
        loop {
            pulse.beat();
            if let Some(open) = channel.take() {
                let since = Instant::now();
                self.board.set_channel_connected(true);
                let over = self.serve(open, &stop, &pulse).await;
                self.board.set_channel_connected(false);
                match over {
                    Over::Stopped => return,
                    Over::Lost => {}
                    Over::Refused => wanted = false,
                }
                if since.elapsed() > RECONNECT_MAX {
                    pause = Duration::from_secs(1);
                }
                next_try = Instant::now() + pause;
                next_rest = Instant::now();
            }
            let next = if wanted { next_try.min(next_rest) } else { next_rest };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => {}
            }
            if wanted && Instant::now() >= next_try {
                match self.reconnect(&stop).await {
                    Ok(open) => {
                        self.learn_version().await;
                        channel = open;
                        continue;
                    }
                    Err(error) => {
                        wanted = error.is_transient();
                        tracing::debug!(error = chain(&error), "no worker channel");
                    }
                }
                pause = (pause * 2).min(RECONNECT_MAX);
                next_try = Instant::now() + pause;
            }
            if Instant::now() >= next_rest {
                if tokio::time::timeout(ROUND, self.refresh()).await.is_err() {
                    tracing::warn!("pool not refreshed: it took too long");
                }
                next_rest = Instant::now() + self.interval();
            }
        }
    }

    async fn refresh(&self) {
        let pool = self.pool.borrow().record.name.clone();
        match sync_over_rest(&self.client, &self.hello, self.kind, &pool, &self.default).await {
            Ok(record) => {
                self.publish(record);
                self.learn_version().await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "pool not refreshed"),
        }
    }

    /// The server may have come back as another.
    async fn learn_version(&self) {
        let learnt = compatibility::learn(&self.client, self.board.board(), self.compare_versions);
        match tokio::time::timeout(ROUND, learnt).await {
            Ok(Err(error @ Error::ServerVersion { .. })) => {
                tracing::error!(error = chain(&error), "the server was changed");
            }
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "the server did not tell its version"),
            Ok(Ok(())) | Err(_) => {}
        }
    }

    /// The longest time between two rounds of the loop.
    pub(crate) fn longest_pause(&self) -> Duration {
        self.interval().max(RECONNECT_MAX)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.hello.heartbeat_interval_seconds)
    }

    async fn reconnect(&self, stop: &CancellationToken) -> Result<Option<Channel>, socket::Error> {
        let pool = self.pool.borrow().record.name.clone();
        let connected = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            connected = Channel::connect(&self.client, &pool, self.hello.clone()) => connected,
        };
        let (channel, ready) = connected?;
        tracing::info!("worker channel is back");
        self.publish(ready.initial_snapshot.work_pool);
        Ok(Some(channel))
    }

    /// Heartbeats out and snapshots in, until the channel breaks.
    async fn serve(&self, mut channel: Channel, stop: &CancellationToken, pulse: &Pulse) -> Over {
        let mut sequence = 0;
        let mut heartbeats = tokio::time::interval(self.interval());
        heartbeats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeats.reset();
        loop {
            pulse.beat();
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    channel.close().await;
                    return Over::Stopped;
                }
                _ = heartbeats.tick() => None,
                frame = channel.next() => Some(frame),
            };
            let error = match result {
                None => channel.heartbeat().await.err(),
                Some(Ok(ServerFrame::Snapshot { payload })) => {
                    self.apply(*payload, &mut sequence);
                    None
                }
                Some(Ok(_)) => None,
                Some(Err(error)) => Some(error),
            };
            if let Some(error) = error {
                tracing::info!(error = chain(&error), "worker channel ended, using REST meanwhile");
                return if error.is_transient() { Over::Lost } else { Over::Refused };
            }
        }
    }

    fn apply(&self, snapshot: Snapshot, sequence: &mut u64) {
        if snapshot.snapshot_sequence > *sequence {
            *sequence = snapshot.snapshot_sequence;
            tracing::info!(reason = snapshot.reason, "the work pool changed");
            self.publish(snapshot.work_pool);
        }
    }

    fn show(&self, record: &WorkPool) {
        let drift = Drift::between(&self.default, &record.base_job_template);
        if !drift.is_empty() {
            tracing::debug!(pool = record.name, %drift, "the pool's template is not ours");
        }
        self.board.set_record(record, !drift.missing.is_empty());
    }

    fn publish(&self, record: WorkPool) {
        if record.kind != self.kind {
            tracing::error!(
                expected = self.kind,
                actual = record.kind,
                "the work pool is of another type now; its runs may fail"
            );
        }
        self.show(&record);
        let pool = Pool::new(record, &self.default);
        if let Err(error) = &pool.template {
            tracing::error!(
                error = chain(error),
                "the base job template of the pool is wrong; its runs will crash"
            );
        }
        self.pool.send_replace(Arc::new(pool));
    }
}

/// One round of REST: find or make the pool, give it a template if it has none, say that we are alive.
async fn sync_over_rest(
    client: &Client,
    hello: &Hello,
    kind: &str,
    name: &str,
    default: &BaseJobTemplate,
) -> Result<WorkPool, Error> {
    let mut pool = match client.read_work_pool(name).await? {
        Some(pool) => pool,
        None if hello.create_pool_if_not_found => create(client, kind, name, default).await?,
        None => return Err(Error::UnknownPool { name: name.to_owned() }),
    };
    if pool.base_job_template.is_empty() {
        let update = WorkPoolUpdate { base_job_template: Some(default.clone()), ..Default::default() };
        client.update_work_pool(name, &update).await?;
        pool.base_job_template = default.clone();
    }
    client.worker_heartbeat(name, &hello.worker_name, hello.heartbeat_interval_seconds).await?;
    Ok(pool)
}

async fn create(
    client: &Client,
    kind: &str,
    name: &str,
    template: &BaseJobTemplate,
) -> Result<WorkPool, Error> {
    let pool = NewWorkPool {
        name: name.to_owned(),
        kind: kind.to_owned(),
        base_job_template: Some(template.clone()),
        description: None,
        concurrency_limit: None,
        is_paused: false,
    };
    match client.create_work_pool(&pool).await {
        Ok(pool) => Ok(pool),
        // Somebody else was faster.
        Err(error) if error.status() == Some(409) => {
            client.read_work_pool(name).await?.ok_or_else(|| Error::UnknownPool { name: name.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

fn check_existing(pool: &WorkPool, kind: &str) -> Result<(), Error> {
    if pool.kind != kind {
        return Err(Error::PoolType {
            name: pool.name.clone(),
            expected: kind.to_owned(),
            actual: pool.kind.clone(),
        });
    }
    if pool.is_paused {
        tracing::warn!(pool = pool.name, "the work pool is paused: it gives no runs out");
    }
    if !pool.base_job_template.is_empty() {
        JobTemplate::parse(&pool.base_job_template)
            .map_err(|source| Error::Template { origin: format!("the work pool {:?}", pool.name), source })?;
    }
    Ok(())
}
