//! How a worker knows its own claims again, also those of its former lives.
//!
//! A claim is the transition id of the PENDING state that a worker proposed. The server stores it with the
//! state, from the first moment on. The first 48 bits of our ids are a fingerprint of pool and worker, the
//! rest is random: so a worker that finds a run PENDING knows whether it was claimed by a worker of its own
//! name, by another of ours, or by one that does not do this (whose ids are `UUIDv4`).

use prefect_api::flow_run::FlowRun;
use uuid::{Builder, Uuid, Variant, Version};

/// The workers' corner of the name space of fingerprints.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_4b7e_9c52_4e0a_8d3f_2a64_c1b0_57e9);
/// Bytes of an id that are the fingerprint.
const LENGTH: usize = 6;

/// What the claims of one worker have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; LENGTH]);

impl Fingerprint {
    /// The fingerprint of a worker of a pool.
    pub(crate) fn of(pool: &str, worker: &str) -> Self {
        let name = format!("{pool}\0{worker}");
        let hash = Uuid::new_v5(&NAMESPACE, name.as_bytes()).into_bytes();
        let mut fingerprint = [0; LENGTH];
        fingerprint.copy_from_slice(hash.first_chunk::<LENGTH>().unwrap_or(&[0; LENGTH]));
        Self(fingerprint)
    }

    /// A new claim.
    pub(crate) fn claim(self) -> Uuid {
        let mut bytes = Uuid::new_v4().into_bytes();
        for (byte, mark) in bytes.iter_mut().zip(self.0) {
            *byte = mark;
        }
        Builder::from_bytes(bytes).with_variant(Variant::RFC4122).with_version(Version::Custom).into_uuid()
    }

    /// Whether a worker of this fingerprint made the claim.
    pub(crate) fn made(self, claim: Uuid) -> bool {
        claim.get_version() == Some(Version::Custom) && claim.as_bytes().starts_with(&self.0)
    }
}

/// The transition id of the run's present state.
pub(crate) fn of_run(run: &FlowRun) -> Option<Uuid> {
    run.state.as_ref()?.state_details.transition_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_knows_its_own_claims_and_no_others() {
        let ours = Fingerprint::of("pool", "worker");
        let (first, second) = (ours.claim(), ours.claim());
        assert_ne!(first, second);
        assert!(ours.made(first) && ours.made(second));
        assert!(Fingerprint::of("pool", "worker").made(first), "also in the next life");
        for other in [("pool", "other"), ("other", "worker"), ("poo", "lworker")] {
            assert!(!Fingerprint::of(other.0, other.1).made(first));
        }
        assert!(!ours.made(Uuid::new_v4()));
    }
}
