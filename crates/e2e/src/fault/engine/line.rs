//! What happens between one run and the server.

use std::time::Duration;

use testkit::faults::Fault;
use testkit::proxy::FaultyProxy;
use tokio::time::sleep;

use super::plan::{Strike, Trouble};

/// Where answers are lost: all but those about slots, which the server would hold for nobody until their lease expires.
const RECORDS: [&str; 6] = ["/events", "/logs", "/artifacts", "/flows", "/flow_runs", "/task_runs"];

/// Does to a line what a strike says, and undoes it.
pub(super) async fn strike(line: &FaultyProxy, strike: Strike) {
    let lasts = Duration::from_millis(strike.lasts);
    let always = |what: &str| Fault::on(what).times(u32::MAX);
    match strike.trouble {
        Trouble::Unavailable { status, retry_after, cut } => {
            let fault = always("*").status(status);
            line.faults().add(match retry_after {
                Some(seconds) => fault.retry_after(seconds),
                None => fault,
            });
            if cut {
                line.cut();
            }
            sleep(lasts).await;
        }
        Trouble::Dropped { times } => {
            for _ in 0..times {
                line.cut();
                sleep(lasts / times).await;
            }
        }
        Trouble::Swallowed { forgotten } => {
            line.fall_silent(true);
            sleep(lasts).await;
            line.fall_silent(false);
            if !forgotten {
                line.cut();
            }
        }
        Trouble::Slow { millis } => {
            line.faults().add(always("*").delay(Duration::from_millis(millis)));
            sleep(lasts).await;
        }
        Trouble::Lost => {
            for path in RECORDS {
                line.faults().add(always("*").containing(path).after_effect().drop_connection());
            }
            sleep(lasts).await;
        }
        // These are the server's own.
        Trouble::Stopped { .. } | Trouble::Frozen => {}
    }
    line.faults().clear();
}
