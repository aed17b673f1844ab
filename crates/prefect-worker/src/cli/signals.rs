//! Signals that end the worker.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::shutdown::{OnShutdown, Shutdown};

/// The first SIGTERM or SIGINT asks the worker to stop as `what` says, for at most `deadline`; the second to
/// leave its runs as they are; the third ends the process at once.
pub(super) async fn watch(shutdown: Shutdown, what: OnShutdown, deadline: Option<Duration>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught: the worker will not stop gracefully");
        return;
    };
    either(&mut terminate, &mut interrupt).await;
    tracing::info!(?what, "stopping: no more claims");
    shutdown.request(what);
    let over = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = either(&mut terminate, &mut interrupt) => {}
        () = over => tracing::warn!("the time for stopping is over"),
    }
    shutdown.request(OnShutdown::Detach);
    either(&mut terminate, &mut interrupt).await;
    #[expect(clippy::exit, reason = "the user insists: nothing is worth waiting for")]
    std::process::exit(1);
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
