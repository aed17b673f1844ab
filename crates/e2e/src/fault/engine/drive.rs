//! The runs' way through: one that nobody disturbs, then all others in waves, each compared with the first.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::bench::Bench;
use super::plan::{Options, Plan, Strike, Wave};
use super::play::{Played, Player};
use super::report::{Report, Struck};
use super::verdict::Evidence;
use super::witness::{Witness, reached};
use crate::record::Subject;
use crate::say;

/// How long a server may take to write down what it was told.
const SETTLED: Duration = Duration::from_mins(5);

/// What every run must come to.
pub(super) struct Undisturbed {
    pub(super) record: Value,
    pub(super) executions: BTreeMap<String, usize>,
}

pub(super) async fn run(bench: &Bench, options: Options) -> Result<Report> {
    let started = Instant::now();
    let (undisturbed, rss_peak) = undisturbed(bench).await?;
    let took = started.elapsed();
    say(&format!("undisturbed: {} bodies in {:.0} s", undisturbed.executions.len(), took.as_secs_f64()));
    let mut report = Report::new(options, &undisturbed.record, rss_peak, took);
    let mut number = 0;
    for wave in Plan::new(options).waves {
        let (played, strikes) = play(bench, wave, number, undisturbed.executions.len() as u64).await?;
        report.struck(strikes);
        let records = try_join_all(played.iter().map(|played| record(bench, played))).await?;
        for (played, record) in played.into_iter().zip(records) {
            report.add(&Evidence { number, record, played, undisturbed: &undisturbed });
            number += 1;
        }
        report.leaked(bench.leaked_slots().await?);
    }
    report.close(started.elapsed());
    Ok(report)
}

/// The run that all others are compared with.
async fn undisturbed(bench: &Bench) -> Result<(Undisturbed, u64)> {
    let played = Player::new(bench, None, Vec::new()).await?.play(0).await?;
    ensure!(
        played.exit.is_some_and(|exit| exit.success()),
        "the undisturbed run ended with {:?}:\n{}",
        played.exit,
        played.said
    );
    let record = record(bench, &played).await?;
    let state = &record["flow run"]["state_name"];
    ensure!(state == "Completed", "the undisturbed run is {state}:\n{}", played.said);
    ensure!(played.executions.values().all(|count| *count == 1), "the undisturbed run did something twice");
    Ok((Undisturbed { record, executions: played.executions }, played.rss_peak))
}

/// Plays runs side by side, while what is to happen to the server does.
async fn play(bench: &Bench, wave: Wave, first: usize, length: u64) -> Result<(Vec<Played>, Vec<Struck>)> {
    let mut players = Vec::new();
    for (number, strikes) in (first..).zip(wave.runs) {
        players.push(Player::new(bench, Some(number), strikes).await?);
    }
    let witnesses: Vec<Witness> = players.iter().map(|player| player.witness().clone()).collect();
    let ended = CancellationToken::new();
    let played = async {
        let played = try_join_all(players.into_iter().map(|player| player.play(length))).await;
        ended.cancel();
        played
    };
    tokio::try_join!(played, strike(bench, &wave.server, &witnesses, length, &ended))
}

/// Strikes the server, each time at its moment, as long as there are runs.
async fn strike(
    bench: &Bench,
    strikes: &[Strike],
    witnesses: &[Witness],
    length: u64,
    ended: &CancellationToken,
) -> Result<Vec<Struck>> {
    let mut struck = Vec::new();
    for strike in strikes {
        let moment = async {
            reached(witnesses, strike.after, length).await;
            sleep(Duration::from_millis(strike.delay)).await;
        };
        if ended.run_until_cancelled(moment).await.is_none() {
            break;
        }
        let mut begun = Struck::begin(*strike, None);
        say(&begun.text());
        bench.strike(*strike).await?;
        begun.end();
        struck.push(begun);
    }
    Ok(struck)
}

/// What the server holds of a run in the end.
async fn record(bench: &Bench, played: &Played) -> Result<Value> {
    let subject =
        Subject { rest: &bench.rest, run: played.run, words: Vec::new(), limits: &[], deadline: SETTLED };
    subject.settled().await
}
