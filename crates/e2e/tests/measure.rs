//! The measurements of the engines measure: the same of both, and nothing that cannot be.

use e2e::measure::{self, Figure, Options};

#[tokio::test(flavor = "multi_thread")]
async fn both_engines_are_measured() {
    let mut figures = Vec::new();
    let tell = |figure: &Figure| {
        figures.push(figure.clone());
        Ok(())
    };
    let options = Options { runs: Some(2), tasks: Some(50), ..Options::default() };
    measure::run(Some("engine"), options, tell, std::future::pending()).await.unwrap();
    let of = |name: &str| {
        let figure = figures.iter().find(|figure| figure.name == name).expect(name);
        [figure.ours, figure.peer.unwrap()]
    };
    let lost = "50 tasks: lost";
    for figure in figures.iter().filter(|figure| figure.name != lost) {
        assert!(of(&figure.name).into_iter().all(|value| value > 0.0), "{figure:?}");
    }
    assert!(of(lost).into_iter().all(|lost| lost == 0.0), "{figures:#?}");
    let grows =
        ["Running", "Completed", "end"].map(|name| of(&format!("empty flow: process start to {name}")));
    let cpu = ["CPU before its first line", "CPU"].map(|name| of(&format!("empty flow: {name}")));
    for side in 0..2 {
        assert!(
            grows.is_sorted_by_key(|values| values[side]) && cpu[0][side] <= cpu[1][side],
            "{figures:#?}"
        );
    }
    let [ours, peer] = of("empty flow: HTTP requests");
    assert!(ours < peer, "{ours} requests are more than are needed");
}
