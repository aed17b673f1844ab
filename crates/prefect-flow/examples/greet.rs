//! The smallest program worth having: two flows, one inside the other, with tasks, a retry and a progress.

use std::process::ExitCode;
use std::time::Duration;

use prefect_flow::{BoxError, Context, Flow, Program};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `greet` takes.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Greeting {
    /// Who is greeted.
    #[serde(default = "world")]
    name: String,
    /// How often.
    #[serde(default)]
    times: u32,
}

fn world() -> String {
    "world".to_owned()
}

/// What `shout` takes.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Words {
    /// What is shouted.
    words: String,
}

async fn greet(ctx: Context, greeting: Greeting) -> Result<(), BoxError> {
    let composed =
        ctx.task("compose").run(|_| async { Ok::<_, BoxError>(format!("hello {}", greeting.name)) });
    let composed = composed.await?;
    let progress = ctx.progress("greetings", Some("how far the greeting is"))?;
    for number in 0..greeting.times {
        let task = ctx.task("say").run_name(format!("say-{number}")).retries(2, Duration::from_secs(1));
        let said = task.tag("voice").input("words", &composed).run(|task| {
            let words = &*composed;
            async move {
                task.unless_cancelled(tokio::time::sleep(Duration::from_millis(200))).await?;
                task.info(words);
                Ok::<_, BoxError>(())
            }
        });
        said.await?;
        progress.set_of(u64::from(number + 1), u64::from(greeting.times));
    }
    let words = Words { words: composed.to_uppercase() };
    ctx.subflow(&shout(), words).input("words", &composed).await?;
    ctx.markdown("summary", format!("Greeted **{}**", greeting.name), None).await?;
    Ok(())
}

fn shout() -> Flow<Words> {
    Flow::new("shout", |ctx: Context, words: Words| async move {
        let words = &words.words;
        let done = ctx.task("shout").run(|task| async move {
            task.info(words);
            Ok::<_, BoxError>(())
        });
        done.await?;
        Ok::<_, BoxError>(())
    })
}

fn main() -> ExitCode {
    Program::new("greet", env!("CARGO_PKG_VERSION"))
        .about("Greets, as a Prefect flow")
        .flow(Flow::new("greet", greet).run_name("greet-{name}").description("Greets somebody"))
        .flow(shout())
        .main()
}
