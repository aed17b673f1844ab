//! The way of a request into the service and back: signature required, faults injected, calls recorded.
//!
//! The name of the operation is known only inside the service, the answer only outside of it. A [`Slot`]
//! travels with the request and carries both ways.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::{PutObjectInput, StreamingBlob, UploadPartInput};
use s3s::path::S3Path;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, s3_error};

use super::service::Service;
use super::store::Store;
use crate::faults::{Action, Faults, Strike};
use crate::server::Connection;

/// A signed request as it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the operation, as Amazon writes it.
    pub operation: String,
    /// Bucket, empty where the operation has none.
    pub bucket: String,
    /// Key, empty where the operation has none.
    pub key: String,
    /// HTTP status of the answer; `None` when the connection was cut.
    pub status: Option<u16>,
}

/// Faults and records of one server.
#[derive(Debug, Default)]
pub(super) struct Gate {
    faults: Faults,
    calls: Mutex<Vec<Call>>,
}

impl Gate {
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the inside learns about a request, for the outside.
#[derive(Clone, Debug, Default)]
struct Slot(Arc<Mutex<Passage>>);

#[derive(Debug, Default)]
struct Passage {
    call: Option<Call>,
    strike: Option<Strike>,
    cut: bool,
}

impl Slot {
    fn with<R>(&self, act: impl FnOnce(&mut Passage) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Marks an answer whose status the protocol layer cannot express.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusOverride(pub StatusCode);

/// The router that serves a store.
pub(super) fn router(gate: &Arc<Gate>, store: &Arc<Store>, access_key: &str, secret_key: &str) -> Router {
    let mut builder = S3ServiceBuilder::new(Service::new(Arc::clone(store)));
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    builder.set_access(Access(Arc::clone(gate)));
    let service = builder.build();
    let gate = Arc::clone(gate);
    Router::new().fallback(move |ConnectInfo(connection): ConnectInfo<Connection>, request: Request| {
        let (service, gate) = (service.clone(), Arc::clone(&gate));
        async move { pass(&service, &gate, &connection, request).await }
    })
}

async fn pass(service: &S3Service, gate: &Gate, connection: &Connection, mut request: Request) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let mut response = match service.call(request.map(s3s::Body::http_body_unsync)).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::error!(?error, "the S3 service failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    };
    if let Some(StatusOverride(status)) = response.extensions().get() {
        *response.status_mut() = *status;
    }
    let (call, after, mut cut) = slot.with(|passage| {
        let after = passage.strike.take().filter(|strike| strike.after_effect);
        (passage.call.take(), after, passage.cut)
    });
    match after.map(|strike| strike.action) {
        Some(Action::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Action::DropConnection) => cut = true,
        Some(Action::Error { status, code, .. }) => response = error_response(status, &code),
        None => {}
    }
    if let Some(mut call) = call {
        call.status = (!cut).then(|| response.status().as_u16());
        gate.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
    if cut {
        connection.cut();
    }
    response
}

fn injected(status: u16, code: &str) -> S3Error {
    let Ok(code) = S3ErrorCode::from_str(code);
    let mut error = S3Error::with_message(code, "injected fault");
    error.set_status_code(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    error
}

fn error_response(status: u16, code: &str) -> Response {
    match injected(status, code).to_http_response() {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Lets signed requests pass and strikes those that a fault waits for.
#[derive(Debug)]
struct Access(Arc<Gate>);

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        }
        let operation = context.s3_op().name();
        let (bucket, key) = match context.s3_path() {
            S3Path::Root => ("", ""),
            S3Path::Bucket { bucket } => (bucket.as_ref(), ""),
            S3Path::Object { bucket, key } => (bucket.as_ref(), key.as_ref()),
        };
        let strike = self.0.faults.strike(operation, &format!("{bucket}/{key}"));
        let call = Call {
            operation: operation.to_owned(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            status: None,
        };
        let carries_body = matches!(operation, "PutObject" | "UploadPart");
        let Some(slot) = context.extensions_mut().get::<Slot>().cloned() else { return Ok(()) };
        slot.with(|passage| {
            passage.call = Some(call);
            passage.strike = strike;
        });
        // Where bytes follow, they are read first: an answer in their midst would reach nobody.
        if carries_body { Ok(()) } else { strike_before(&slot, None).await }
    }

    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        match request.extensions.get::<Slot>().cloned() {
            Some(slot) => strike_before(&slot, Some(&mut request.input.body)).await,
            None => Ok(()),
        }
    }

    async fn upload_part(&self, request: &mut S3Request<UploadPartInput>) -> S3Result<()> {
        match request.extensions.get::<Slot>().cloned() {
            Some(slot) => strike_before(&slot, Some(&mut request.input.body)).await,
            None => Ok(()),
        }
    }
}

/// Strikes a request before it takes effect.
async fn strike_before(slot: &Slot, body: Option<&mut Option<StreamingBlob>>) -> S3Result<()> {
    let strike = slot.with(|passage| passage.strike.take_if(|strike| !strike.after_effect));
    let failure = match strike.map(|strike| strike.action) {
        None => return Ok(()),
        Some(Action::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            return Ok(());
        }
        Some(Action::DropConnection) => {
            slot.with(|passage| passage.cut = true);
            return Err(s3_error!(InternalError, "injected fault"));
        }
        Some(Action::Error { status, code, .. }) => injected(status, &code),
    };
    if let Some(mut body) = body.and_then(Option::take) {
        while let Some(Ok(_)) = body.next().await {}
    }
    Err(failure)
}
