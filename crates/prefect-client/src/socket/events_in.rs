//! Delivery of our events, at least once and in order (contract §4.2).
//!
//! One task owns the socket. The server does not acknowledge events; a pong confirms everything sent before
//! its ping. When a socket breaks, what is unconfirmed is in doubt, and so is what was confirmed not long before: see
//! [`super::doubt`]. Where no socket can be had, or one event makes the server drop it again and again, events go
//! over REST; sockets are then tried again, ever more rarely, since most things that refuse them do so for good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prefect_api::event::Event;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

use super::doubt::{Confirmed, missing};
use super::{Error, Incoming, Socket, backoff};
use crate::http::Client;

/// Events that may wait before a sender has to.
const QUEUE: usize = 4096;
/// Unconfirmed events that call for a ping.
const PING_AFTER: usize = 100;
/// Time without a confirmation that calls for a ping.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A ping that is not answered for so long means that the socket is dead.
const PONG_WITHIN: Duration = Duration::from_secs(30);
/// Broken sockets in a row, without a confirmation between them, after which REST is tried. One that cannot even
/// be opened counts as many: events may wait for a time-out once, not again and again.
const SOCKET_FAILURES: u32 = 2;
/// How long REST is kept to after that, at first; each further time twice as long.
const DETOUR: Duration = Duration::from_secs(30);
/// No detour is longer.
const LONGEST_DETOUR: Duration = Duration::from_mins(30);
/// Events in one REST call.
const BATCH: usize = 100;

/// Events that did not reach the server before the deadline.
#[derive(Debug, thiserror::Error)]
#[error("deliver {count} event(s) to the Prefect server in time")]
pub struct Undelivered {
    /// How many.
    pub count: usize,
}

enum Order {
    Send(Text),
    Drain(oneshot::Sender<()>),
}

/// An event as it goes out: thousands may wait, and as text they take a small part of the memory.
pub(super) type Text = Utf8Bytes;

/// The way in for events. Cheap to clone; the task behind it ends with the last clone, or when it is drained.
#[derive(Debug, Clone)]
pub struct EventSender {
    orders: mpsc::Sender<Order>,
    /// Events handed over and not known to be with the server.
    pending: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Send(_)) { "Send" } else { "Drain" })
    }
}

impl EventSender {
    /// Starts the delivery. The socket is opened when the first event comes.
    pub fn spawn(client: Client) -> Self {
        let (orders, receiver) = mpsc::channel(QUEUE);
        // Ends with the last sender; `drain` joins it.
        let pending = Arc::new(AtomicUsize::new(0));
        tokio::spawn(Delivery::new(client, receiver, Arc::clone(&pending)).run());
        Self { orders, pending }
    }

    /// Hands an event over. Waits only when thousands are undelivered.
    pub fn send(&self, event: Event) -> impl Future<Output = ()> + Send {
        let text = serde_json::to_string(&event);
        // Here, so that who waits has it as text too.
        drop(event);
        async move {
            let text = match text {
                Ok(text) => text,
                Err(error) => return tracing::error!(%error, "an event cannot be written as JSON"),
            };
            self.pending.fetch_add(1, Ordering::Relaxed);
            if self.orders.send(Order::Send(text.into())).await.is_err() {
                tracing::warn!("an event came after the last");
            }
        }
    }

    /// Waits until all events handed over so far are with the server and the socket is closed. Events that
    /// come later are delivered too, over a new socket.
    pub async fn drain(&self, deadline: Duration) -> Result<(), Undelivered> {
        let (done, drained) = oneshot::channel();
        let drain = async {
            self.orders.send(Order::Drain(done)).await.ok()?;
            drained.await.ok()
        };
        match tokio::time::timeout(deadline, drain).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(Undelivered { count: self.pending.load(Ordering::Relaxed) }),
        }
    }
}

fn name_of(event: &Text) -> String {
    serde_json::from_str(event).map_or_else(|_| "of no name".to_owned(), |event: Event| event.event)
}

struct Delivery {
    client: Client,
    orders: mpsc::Receiver<Order>,
    /// Not sent on the present socket.
    waiting: VecDeque<Text>,
    /// Sent on the present socket, not confirmed.
    sent: VecDeque<Text>,
    /// With the server, which has perhaps not written them down yet.
    confirmed: Confirmed,
    /// The server may have these, or may have lost them. Nothing is sent before that is known.
    doubtful: Vec<Text>,
    /// Number of events sent on the present socket before the ping under way.
    ping: Option<(usize, Instant)>,
    confirmed_at: Instant,
    failures: u32,
    /// Failures over REST in a row.
    rest_failures: u32,
    /// Until when REST is kept to.
    detour_until: Option<Instant>,
    /// How long the next detour is.
    detour: Duration,
    drains: Vec<oneshot::Sender<()>>,
    pending: Arc<AtomicUsize>,
}

impl Delivery {
    fn new(client: Client, orders: mpsc::Receiver<Order>, pending: Arc<AtomicUsize>) -> Self {
        Self {
            client,
            orders,
            pending,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            confirmed: Confirmed::default(),
            doubtful: Vec::new(),
            ping: None,
            confirmed_at: Instant::now(),
            failures: 0,
            rest_failures: 0,
            detour_until: None,
            detour: DETOUR,
            drains: Vec::new(),
        }
    }

    async fn run(mut self) {
        loop {
            // A drain may have been asked for while events were on their way over REST.
            if self.waiting.is_empty() && self.doubtful.is_empty() && self.drains.is_empty() {
                match self.orders.recv().await {
                    Some(order) => self.take(order),
                    None => return,
                }
            }
            self.take_ready();
            if !self.doubtful.is_empty() {
                self.resolve().await;
                continue;
            }
            if self.waiting.is_empty() {
                self.finish_drains();
                continue;
            }
            if self.detour_until.is_some_and(|until| Instant::now() < until) {
                self.send_over_rest().await;
                continue;
            }
            if let Err(error) = self.send_over_socket().await {
                self.recover(&error).await;
            }
        }
    }

    /// Puts in doubt what the server may not have, and decides what is tried next.
    async fn recover(&mut self, error: &Error) {
        tracing::debug!(%error, "the socket for events ended");
        let sent = std::mem::take(&mut self.sent);
        self.doubt(sent);
        self.ping = None;
        self.failures += 1;
        if self.failures < SOCKET_FAILURES {
            tokio::time::sleep(backoff(self.failures - 1)).await;
            return;
        }
        self.failures = 0;
        self.detour_until = Some(Instant::now() + self.detour);
        if self.detour == DETOUR {
            tracing::info!(%error, "events go over REST for a while: the socket for them does not hold");
        }
        self.detour = (self.detour * 2).min(LONGEST_DETOUR);
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Send(event) => self.waiting.push_back(event),
            Order::Drain(done) => self.drains.push(done),
        }
    }

    /// Takes what has come, but never more than the queue would hold: who sends has to wait then.
    fn take_ready(&mut self) {
        while self.waiting.len() + self.sent.len() < QUEUE {
            match self.orders.try_recv() {
                Ok(order) => self.take(order),
                Err(_) => return,
            }
        }
    }

    fn finish_drains(&mut self) {
        for done in self.drains.drain(..) {
            if done.send(()).is_err() {
                tracing::debug!("whoever waited for the last event has given up");
            }
        }
    }

    /// Sends over one socket until it breaks (an error), or all is confirmed and a drain was asked for, or
    /// nobody can send any more.
    async fn send_over_socket(&mut self) -> Result<(), Error> {
        let socket = Socket::connect(&self.client, &["events", "in"], self.client.auth_string()).await;
        let mut socket = socket.inspect_err(|_| self.failures = SOCKET_FAILURES)?;
        self.confirmed_at = Instant::now();
        let mut open = true;
        loop {
            while let Some(event) = self.waiting.pop_front() {
                // First in the list of the unconfirmed, then on its way: a failure loses nothing.
                let outcome = socket.send_text(event.clone()).await;
                self.sent.push_back(event);
                outcome?;
                self.take_ready();
            }
            let hurry = !self.drains.is_empty() || !open;
            if self.sent.is_empty() && hurry {
                socket.close().await;
                self.finish_drains();
                return Ok(());
            }
            if self.ping.is_none() && !self.sent.is_empty() {
                let due = hurry || self.sent.len() >= PING_AFTER || self.confirmed_at.elapsed() >= PING_EVERY;
                if due {
                    socket.ping(Bytes::from_static(b"confirm")).await?;
                    self.ping = Some((self.sent.len(), Instant::now()));
                }
            }
            let room = self.sent.len() < QUEUE;
            tokio::select! {
                order = self.orders.recv(), if open && room => match order {
                    Some(order) => self.take(order),
                    None => open = false,
                },
                incoming = socket.next() => if let Incoming::Pong = incoming? { self.confirm() },
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    if self.ping.is_some_and(|(_, since)| since.elapsed() > PONG_WITHIN) {
                        return Err(socket.lost(&"a ping was not answered"));
                    }
                }
            }
        }
    }

    /// `count` events are with the server, or refused by it.
    fn settle(&self, count: usize) {
        self.pending.fetch_sub(count, Ordering::Relaxed);
    }

    /// These events are with the server.
    fn confirm_all(&mut self, events: Vec<Text>) {
        self.settle(events.len());
        self.confirmed.add(events);
    }

    /// A server that broke off may not have these, nor what it has confirmed lately.
    fn doubt(&mut self, events: impl IntoIterator<Item = Text>) {
        let confirmed = self.confirmed.take();
        self.pending.fetch_add(confirmed.len(), Ordering::Relaxed);
        self.doubtful.extend(confirmed);
        self.doubtful.extend(events);
    }

    /// Finds out which events in doubt the server has, and has the others sent before all that wait.
    async fn resolve(&mut self) {
        let missing = match missing(&self.client, &self.doubtful).await {
            Ok(missing) => missing,
            Err(error) => {
                tracing::debug!(%error, "nobody can tell yet which events the server has");
                self.rest_failures += 1;
                tokio::time::sleep(backoff(self.rest_failures)).await;
                return;
            }
        };
        self.rest_failures = 0;
        let total = std::mem::take(&mut self.doubtful).len();
        tracing::debug!(total, missing = missing.len(), "looked which events the server has");
        self.settle(total - missing.len());
        self.restore(missing);
    }

    fn confirm(&mut self) {
        if let Some((count, _)) = self.ping.take() {
            let count = count.min(self.sent.len());
            let confirmed = self.sent.drain(..count).collect();
            self.confirm_all(confirmed);
            self.confirmed_at = Instant::now();
            self.failures = 0;
            self.detour = DETOUR;
        }
    }

    /// Sends one batch over REST. A batch that is refused is sent one by one, so that one bad event does not
    /// take the others with it; the bad one is dropped, loudly.
    async fn send_over_rest(&mut self) {
        let batch: Vec<Text> = self.waiting.drain(..self.waiting.len().min(BATCH)).collect();
        let refused = match self.client.post_events(&batch).await {
            Ok(()) => {
                self.confirm_all(batch);
                Vec::new()
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "events could not be sent over REST");
                self.doubt(batch);
                self.rest_failures += 1;
                tokio::time::sleep(backoff(self.rest_failures)).await;
                // The server is away rather than its sockets blocked.
                (self.detour_until, self.detour) = (None, DETOUR);
                return;
            }
            Err(_) => batch,
        };
        let mut refused = VecDeque::from(refused);
        while let Some(event) = refused.pop_front() {
            match self.client.post_events(std::slice::from_ref(&event)).await {
                Err(error) if error.is_transient() => {
                    self.restore(refused);
                    self.doubt([event]);
                    return;
                }
                Err(error) => {
                    tracing::error!(event = name_of(&event), %error, "the server refuses an event");
                    self.settle(1);
                }
                Ok(()) => self.confirm_all(vec![event]),
            }
        }
        self.rest_failures = 0;
    }

    fn restore(&mut self, events: impl IntoIterator<Item = Text, IntoIter: DoubleEndedIterator>) {
        for event in events.into_iter().rev() {
            self.waiting.push_front(event);
        }
    }
}
