//! What is on the board, as gauges.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::status::{PoolStatus, RunPhase, State, Status, StatusBoard};

#[derive(Debug)]
pub(super) struct Gauges {
    status: StatusBoard,
}

impl Gauges {
    pub(super) fn new(status: StatusBoard) -> Self {
        Self { status }
    }
}

type PoolGauge = (&'static str, &'static str, Option<Unit>, fn(&PoolStatus) -> Option<f64>);

/// Name, help, unit and value of the gauges that each pool has.
const OF_POOLS: [PoolGauge; 7] = [
    ("slots_limit", "The most runs at a time; absent if there is no limit", None, |pool| {
        pool.limit.and_then(|limit| u32::try_from(limit).ok()).map(f64::from)
    }),
    ("slots_used", "Runs that take a slot", None, |pool| u32::try_from(pool.runs.len()).ok().map(f64::from)),
    ("last_poll_age", "Time since the pool was polled with success", Some(Unit::Seconds), |pool| {
        Some(pool.last_poll_age_seconds)
    }),
    ("event_stream_connected", "1 while the pool's events come as they happen, else 0", None, |pool| {
        Some(flag(pool.events_connected))
    }),
    ("channel_connected", "1 while the worker channel is open, 0 while REST stands in", None, |pool| {
        Some(flag(pool.channel_connected))
    }),
    ("pool_paused", "1 while the pool is paused, else 0", None, |pool| Some(flag(pool.paused))),
    ("template_drift", "1 if the pool's base job template lacks variables of ours, else 0", None, |pool| {
        Some(flag(pool.template_drift))
    }),
];

type WorkerGauge = (&'static str, &'static str, fn(&Status) -> u64);

/// Name, help and value of the gauges of the whole worker.
const OF_WORKER: [WorkerGauge; 2] = [
    ("reports_waiting", "Reports about runs that the server has not taken yet", |status| {
        status.reports_waiting
    }),
    ("draining", "1 once the worker claims no more runs, else 0", |status| {
        u64::from(matches!(status.state, State::Draining | State::Stopping))
    }),
];

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let status = self.status.snapshot();
        let help = "Runs that the worker works on, by phase";
        let mut family = encoder.encode_descriptor("runs", help, None, MetricType::Gauge)?;
        for pool in &status.pools {
            for phase in RunPhase::ALL {
                let count = pool.runs.iter().filter(|run| run.phase == phase).count();
                let labels = [("pool", pool.name.as_str()), ("phase", phase.name())];
                family.encode_family(&labels)?.encode_gauge(&u64::try_from(count).unwrap_or(u64::MAX))?;
            }
        }
        for (name, help, unit, value) in &OF_POOLS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for pool in &status.pools {
                if let Some(value) = value(pool) {
                    family.encode_family(&[("pool", pool.name.as_str())])?.encode_gauge(&value)?;
                }
            }
        }
        for (name, help, value) in &OF_WORKER {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&value(&status))?;
        }
        let help = "When the process started, since the epoch";
        let started = u64::try_from(status.started_at.as_second()).unwrap_or(0);
        encoder
            .encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?
            .encode_gauge(&started)?;
        let (server, engine) = (status.server_version, status.engine.map(|engine| engine.version));
        let labels = [
            ("version", status.version),
            ("server_version", server.unwrap_or_default()),
            ("engine_version", engine.unwrap_or_default()),
        ];
        encoder
            .encode_descriptor("build", "The versions that work together", None, MetricType::Info)?
            .encode_info(&labels)
    }
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}
