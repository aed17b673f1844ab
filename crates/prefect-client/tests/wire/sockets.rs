//! Events, over sockets and over REST where there are none.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use prefect_api::event::{Event, Resource};
use prefect_api::id::FlowRunId;
use prefect_client::socket::EventSender;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::once::SETTINGS;
use crate::server::{Script, client, serve};

/// Opens a socket as the server does: with its protocol, and an authentication without credentials.
async fn open_socket(stream: TcpStream) -> WebSocketStream<TcpStream> {
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let accept = tokio_tungstenite::accept_hdr_async(
        stream,
        |request: &_, mut response: tokio_tungstenite::tungstenite::handshake::server::Response| {
            let request: &tokio_tungstenite::tungstenite::handshake::server::Request = request;
            assert_eq!(request.headers().get("sec-websocket-protocol").unwrap(), "prefect");
            response.headers_mut().insert("sec-websocket-protocol", "prefect".parse().unwrap());
            Ok(response)
        },
    );
    let mut socket = accept.await.unwrap();
    let auth = socket.next().await.unwrap().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(auth.to_text().unwrap()).unwrap(),
        json!({"type": "auth", "token": null})
    );
    socket.send(Message::text("{\"type\": \"auth_success\"}")).await.unwrap();
    socket
}

/// Takes events over a socket until it is closed, or so many have come.
async fn take_events(stream: TcpStream, received: Arc<Mutex<Vec<Value>>>, most: usize) {
    let mut socket = open_socket(stream).await;
    let mut events = 0;
    while events < most {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                events += 1;
                received.lock().unwrap().push(serde_json::from_str(&text).unwrap());
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// A listener that hands the connections for WebSockets over, and has REST answered.
async fn fork<R>(script: Script, socket: impl Fn(TcpStream) -> R + Send + 'static) -> String
where
    R: Future<Output = ()> + Send + 'static,
{
    let rest = serve(script).await;
    let rest = rest.trim_start_matches("http://").trim_end_matches("/api").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut inbound, _) = listener.accept().await.unwrap();
            let mut start = [0; 8];
            inbound.peek(&mut start).await.unwrap();
            if start.starts_with(b"GET /api") {
                tokio::spawn(socket(inbound));
                continue;
            }
            let mut outbound = TcpStream::connect(&rest).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await);
            });
        }
    });
    url
}

#[tokio::test]
async fn events_survive_a_dropped_socket_in_order() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let (taken, sockets) = (Arc::clone(&received), Arc::new(Mutex::new(0)));
    // It drops the first socket after two events, then behaves; it does not tell which events it has.
    let events_in = move |stream: TcpStream| {
        let is_first = std::mem::replace(&mut *sockets.lock().unwrap(), 1) == 0;
        take_events(stream, Arc::clone(&taken), if is_first { 2 } else { usize::MAX })
    };
    let url = fork(Script::default(), events_in).await;
    let sender = EventSender::spawn(client(&url, &SETTINGS));
    for number in 0..5 {
        let resource = Resource::of("flow-run", "x");
        sender.send(Event::new(format!("test.{number}"), Timestamp::now(), resource)).await;
    }
    sender.drain(Duration::from_secs(20)).await.unwrap();
    let received = received.lock().unwrap();
    let names: Vec<_> = received.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // What was unconfirmed came again; ids make that harmless.
    assert_eq!(names, ["test.0", "test.1", "test.0", "test.1", "test.2", "test.3", "test.4"]);
    assert_eq!(received[0]["id"], received[2]["id"]);
}

/// Never says anything on connections for WebSockets; counts them.
async fn swallowing(script: Script) -> (String, Arc<Mutex<u32>>) {
    let swallowed = Arc::new(Mutex::new(0));
    let count = Arc::clone(&swallowed);
    let swallow = move |inbound: TcpStream| {
        *count.lock().unwrap() += 1;
        async move {
            // Kept open for as long as the test runs.
            let _kept = inbound;
            std::future::pending::<()>().await;
        }
    };
    (fork(script, swallow).await, swallowed)
}

/// What the server says that it has.
struct Look {
    /// How many of two events are stored.
    stored: usize,
    /// Whether the state that the first of them tells is recorded.
    recorded: bool,
}

/// Events about two task runs go over a socket that confirms them; then there are no sockets any more, and one more event.
/// The server says of the first two what `looks` say. Gives what comes over REST.
async fn after_a_break(looks: &[Look]) -> Vec<String> {
    let tasks = ["01933b1c-1f4e-7c42-9d1c-5f0c1d2e3f40", "01933b1c-1f4e-7c42-9d1c-5f0c1d2e3f41"];
    let (earlier, at) = ("2026-11-25T14:58:36Z", "2026-11-25T14:58:37.123456Z");
    let event = |(number, id): (usize, &&str)| {
        // The server cuts this to microseconds.
        let occurred = "2026-11-25T14:58:37.123456789Z".parse().unwrap();
        Event::new(format!("test.{number}"), occurred, Resource::of("task-run", id))
    };
    let events: Vec<Event> = tasks.iter().enumerate().map(event).collect();
    let script = Script::default();
    for Look { stored, recorded } in looks {
        let stored: Vec<Value> = events.iter().take(*stored).map(|event| json!({"id": event.id})).collect();
        let task_run = |id: &str, at: &str| {
            let state = json!({"id": FlowRunId::generate(), "type": "RUNNING", "timestamp": at});
            json!({"id": id, "name": "a", "task_key": "a", "dynamic_key": "0", "state": state})
        };
        let recorded = [task_run(tasks[0], if *recorded { at } else { earlier }), task_run(tasks[1], at)];
        let answers = [json!({"events": stored}), json!(recorded)];
        script.answers.lock().unwrap().extend(answers.map(|answer| (200, vec![], answer)));
    }
    let sockets = Arc::new(Mutex::new(0));
    let url = fork(script.clone(), move |stream| {
        let is_first = std::mem::replace(&mut *sockets.lock().unwrap(), 1) == 0;
        async move {
            if is_first {
                take_events(stream, Arc::default(), usize::MAX).await;
            }
        }
    })
    .await;
    let sender = EventSender::spawn(client(&url, &SETTINGS));
    for event in events {
        sender.send(event).await;
    }
    sender.drain(Duration::from_secs(20)).await.unwrap();
    sender.send(Event::new("test.2", Timestamp::now(), Resource::of("flow-run", "x"))).await;
    sender.drain(Duration::from_secs(40)).await.unwrap();
    let seen = script.seen.lock().unwrap();
    let posted =
        seen.iter().filter(|call| call.1 == "/api/events").flat_map(|call| call.3.as_array().unwrap());
    posted.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn events_that_a_killed_server_has_forgotten_are_sent_again_in_their_place() {
    let nothing = || Look { stored: 0, recorded: true };
    assert_eq!(after_a_break(&[nothing(), nothing()]).await, ["test.0", "test.1", "test.2"]);
}

#[tokio::test]
async fn an_event_whose_state_is_not_recorded_is_sent_again_though_it_is_stored() {
    let unrecorded = || Look { stored: 2, recorded: false };
    assert_eq!(after_a_break(&[unrecorded(), unrecorded()]).await, ["test.0", "test.2"]);
}

#[tokio::test]
async fn events_that_the_server_has_are_not_sent_again() {
    assert_eq!(after_a_break(&[Look { stored: 2, recorded: true }]).await, ["test.2"]);
}

#[tokio::test]
async fn a_server_that_is_still_writing_is_waited_for() {
    let looks = [0, 1, 2].map(|stored| Look { stored, recorded: true });
    assert_eq!(after_a_break(&looks).await, ["test.2"]);
}

#[tokio::test]
async fn events_go_over_rest_and_stay_there_where_sockets_are_swallowed() {
    let script = Script::default();
    script.answers.lock().unwrap().extend((0..3).map(|_| (204, vec![], json!(null))));
    let (url, swallowed) = swallowing(script.clone()).await;
    let csrf = ("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false");
    let sender = EventSender::spawn(client(&url, &[csrf]));
    for number in 0..3 {
        let resource = Resource::of("flow-run", "x");
        sender.send(Event::new(format!("test.{number}"), Timestamp::now(), resource)).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
    }
    let seen = script.seen.lock().unwrap();
    let sent: Vec<_> = seen.iter().map(|call| call.3[0]["event"].as_str().unwrap()).collect();
    assert_eq!(sent, ["test.0", "test.1", "test.2"]);
    assert_eq!(*swallowed.lock().unwrap(), 1, "one time-out is enough to know");
}

#[tokio::test]
async fn one_refusal_of_a_socket_is_enough_to_send_events_over_rest() {
    for status in [403, 404, 502] {
        let script = Script::default();
        script.answers.lock().unwrap().extend([(status, vec![], json!({})), (204, vec![], json!(null))]);
        let csrf = ("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false");
        let sender = EventSender::spawn(client(&serve(script.clone()).await, &[csrf]));
        sender.send(Event::new("test", Timestamp::now(), Resource::of("flow-run", "x"))).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
        let seen = script.seen.lock().unwrap();
        let paths: Vec<_> = seen.iter().map(|call| call.1.as_str()).collect();
        assert_eq!(paths, ["/api/events/in", "/api/events"], "{status}");
    }
}

/// A proxy that opens tunnels for whoever brings the password; the targets asked for, in order.
async fn tunnels() -> (String, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let targets = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut inbound, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(inbound.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            targets.lock().unwrap().push(target.clone());
            let known = head.to_ascii_lowercase().contains("proxy-authorization: basic dtpw");
            if !head.starts_with("CONNECT") || !known {
                let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                inbound.write_all(refusal).await.unwrap();
                continue;
            }
            inbound.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut outbound = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await);
            });
        }
    });
    (address.to_string(), asked)
}

#[tokio::test]
async fn sockets_take_the_way_that_the_proxy_variables_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            take_events(stream, Arc::default(), usize::MAX).await;
        }
    });
    let (proxy, asked) = tunnels().await;
    for (variable, through) in [(("NO_PROXY", "127.0.0.1"), false), (("NO_PROXY", ""), true)] {
        let credentials = format!("http://u:p@{proxy}");
        let variables = [("HTTP_PROXY", credentials.as_str()), variable];
        let sender = EventSender::spawn(client(&format!("http://{target}/api"), &variables));
        sender.send(Event::new("test", Timestamp::now(), Resource::of("flow-run", "x"))).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
        assert_eq!(*asked.lock().unwrap() == [target.clone()], through);
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_the_tunnel_is_named() {
    let (proxy, _) = tunnels().await;
    let refused = client("http://prefect.invalid/api", &[("HTTP_PROXY", &proxy)]);
    let hello = prefect_api::channel::Hello {
        consumer_id: uuid::Uuid::now_v7(),
        worker_name: "w".to_owned(),
        worker_type: "docker".to_owned(),
        heartbeat_interval_seconds: 30,
        supported_channel_versions: vec![],
        requested_capabilities: vec![],
        work_queue_names: vec![],
        create_pool_if_not_found: false,
        default_base_job_template: serde_json::from_value(json!({})).unwrap(),
    };
    let error = prefect_client::socket::Channel::connect(&refused, "pool", hello).await.err().unwrap();
    assert!(!error.is_transient());
    assert!(error.to_string().contains(&proxy) && error.to_string().contains("407"), "{error}");
}
