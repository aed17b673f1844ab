//! What must not be done twice.

use std::sync::{Arc, Mutex};

use prefect_api::id::FlowRunId;
use prefect_api::record::NewLog;
use prefect_api::state::{NewState, StateType};
use serde_json::json;
use tokio::net::TcpListener;

use crate::server::{Script, client, serve, soon};

/// Takes calls and cuts their connections without an answer; gives their number.
async fn losing() -> (String, Arc<Mutex<u32>>) {
    use tokio::io::AsyncReadExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {
                *count.lock().unwrap() += 1;
            }
        }
    });
    (url, calls)
}

pub(crate) const SETTINGS: [(&str, &str); 2] =
    [("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false"), ("PREFECT_CLIENT_MAX_RETRIES", "2")];

fn line(message: &str) -> NewLog {
    NewLog {
        name: "prefect.flow_runs".to_owned(),
        level: 20,
        message: message.to_owned(),
        timestamp: "2026-11-25T14:58:37.123456789Z".parse().unwrap(),
        flow_run_id: Some(FlowRunId::generate()),
        task_run_id: None,
    }
}

#[tokio::test]
async fn what_must_not_be_done_twice_is_not_repeated_when_its_answer_is_lost() {
    let (url, calls) = losing().await;
    let client = client(&url, &SETTINGS);
    let error = client.send_logs(&[line("a")]).await.unwrap_err();
    assert!(error.is_transient() && error.may_have_taken_effect(), "{error}");
    let failed = NewState::new(StateType::Failed);
    client.set_flow_run_state(FlowRunId::generate(), &failed, false).await.unwrap_err();
    assert_eq!(*calls.lock().unwrap(), 2);
}

#[tokio::test]
async fn what_a_gateway_lost_may_have_been_done_and_what_was_refused_has_not() {
    for (status, tries) in [(502, 1), (503, 3)] {
        let script = Script::default();
        script.answers.lock().unwrap().extend([soon(status), soon(status), (201, vec![], json!(null))]);
        let client = client(&serve(script.clone()).await, &SETTINGS);
        let sent = client.send_logs(&[line("a")]).await;
        assert_eq!(script.seen.lock().unwrap().len(), tries, "{status}");
        assert_eq!(sent.is_err_and(|error| error.may_have_taken_effect()), status == 502);
    }
}

#[tokio::test]
async fn lines_are_sent_again_unless_the_first_is_there() {
    let (here, there) = (line("a"), json!({"name": "prefect.flow_runs", "message": "a"}));
    let answers = [
        ((200, vec![], json!([there])), 1),
        ((200, vec![], json!([{"name": "prefect.flow_runs", "message": "b"}])), 2),
        ((200, vec![], json!([])), 2),
        // Nobody may look.
        ((403, vec![], json!({})), 2),
    ];
    for (looked, calls) in answers {
        let script = Script::default();
        script.answers.lock().unwrap().push_back(looked);
        client(&serve(script.clone()).await, &SETTINGS)
            .send_logs_again(std::slice::from_ref(&here))
            .await
            .unwrap();
        let seen = script.seen.lock().unwrap();
        let at = "2026-11-25T14:58:37.123456Z";
        let asked = &seen[0].3["logs"]["timestamp"];
        assert_eq!(*asked, json!({"after_": at, "before_": at}), "in the server's units");
        assert_eq!(seen.len(), calls);
    }
}
