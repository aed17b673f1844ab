//! Concurrency limits and leases on their slots (contract §7).

use std::time::Duration;

use prefect_api::deployment::{GlobalConcurrencyLimit, Lease, LeasedLimit};
use prefect_api::id::LeaseId;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::Error;
use crate::http::{Call, Client};
use crate::retry::SHORTEST;

/// The answer to a request for slots.
#[derive(Debug, Clone, PartialEq)]
pub enum Acquire<G = Lease> {
    /// The slots are ours, while the lease is renewed if there is one. Names that do not exist are missing in it.
    Granted(G),
    /// There are not enough free slots; ask again after this.
    Full {
        /// What the server proposes to wait.
        retry_after: Duration,
    },
}

impl Client {
    /// A global limit. Tag limits are named `tag:<tag>`, deployment limits `deployment:<id>`.
    pub async fn read_limit(&self, name: &str) -> Result<Option<GlobalConcurrencyLimit>, Error> {
        self.read_optional(Call::new(Method::GET, "v2/concurrency_limits/{}", &[name])).await
    }

    /// Makes a global limit; slots come back by themselves at `decay` a second (0: never).
    pub async fn create_limit(&self, name: &str, limit: u32, decay: f64) -> Result<(), Error> {
        let body = json!({"name": name, "limit": limit, "active": true, "active_slots": 0, "slot_decay_per_second": decay});
        self.call(Call::new(Method::POST, "v2/concurrency_limits/", &[]).json(&body)).await
    }

    /// Changes the number of slots of a global limit.
    pub async fn update_limit(&self, name: &str, limit: u32) -> Result<(), Error> {
        self.call(
            Call::new(Method::PATCH, "v2/concurrency_limits/{}", &[name]).json(&json!({"limit": limit})),
        )
        .await
    }

    /// Asks for `slots` of each named limit, all or none. `holder` names the run: `{"type": "task_run", "id": …}`.
    pub async fn acquire_slots(
        &self,
        names: &[String],
        slots: u32,
        lease: Duration,
        holder: Option<&Value>,
    ) -> Result<Acquire, Error> {
        let mut body =
            json!({"names": names, "slots": slots, "mode": "concurrency", "lease_duration": lease.as_secs()});
        if let (Some(holder), Some(body)) = (holder, body.as_object_mut()) {
            body.insert("holder".to_owned(), holder.clone());
        }
        self.acquire(Call::new(Method::POST, "v2/concurrency_limits/increment-with-lease", &[]).json(&body))
            .await
    }

    /// Asks for `slots` of each named limit, all or none, which come back by themselves.
    pub async fn take_rate(&self, names: &[String], slots: u32) -> Result<Acquire<Vec<LeasedLimit>>, Error> {
        let body = json!({"names": names, "slots": slots, "mode": "rate_limit"});
        self.acquire(Call::new(Method::POST, "v2/concurrency_limits/increment", &[]).json(&body)).await
    }

    async fn acquire<G: DeserializeOwned>(&self, call: Call<'_>) -> Result<Acquire<G>, Error> {
        match self.read(call).await {
            Ok(granted) => Ok(Acquire::Granted(granted)),
            Err(Error::Status { status: 423, retry_after, .. }) => {
                let retry_after = retry_after.unwrap_or(Duration::from_secs(1)).max(SHORTEST);
                Ok(Acquire::Full { retry_after })
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps a lease for another `lease`; 410 if it is gone.
    pub async fn renew_lease(&self, id: LeaseId, lease: Duration) -> Result<(), Error> {
        let body = json!({"lease_duration": lease.as_secs()});
        self.call(
            Call::new(Method::POST, "v2/concurrency_limits/leases/{}/renew", &[&id.to_string()]).json(&body),
        )
        .await
    }

    /// Gives the slots of a lease back.
    pub async fn release_lease(&self, id: LeaseId) -> Result<(), Error> {
        let body = json!({"lease_id": id});
        self.call(Call::new(Method::POST, "v2/concurrency_limits/decrement-with-lease", &[]).json(&body))
            .await
    }

    /// Gives slots back by the names of their limits: those of a lease that the server has forgotten.
    pub async fn release_slots(&self, names: &[String], slots: u32) -> Result<(), Error> {
        let body = json!({"names": names, "slots": slots});
        self.call(Call::new(Method::POST, "v2/concurrency_limits/decrement", &[]).json(&body)).await
    }
}
