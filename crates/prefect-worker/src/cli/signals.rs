//! Signals that end the worker.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The first SIGTERM or SIGINT asks the worker to stop; a second one ends the process at once.
pub(super) async fn watch(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught: the worker will not stop gracefully");
        return;
    };
    either(&mut terminate, &mut interrupt).await;
    tracing::info!("stopping: no more claims; containers go on");
    stop.cancel();
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
