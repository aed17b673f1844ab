//! What a run's end must be, from what its program said and what was done to it.

use prefect_api::state::StateType;

use super::plan::PlannedRun;
use super::report::{ContainerEnd, Fault, Struck};
use crate::puppet::Witness;

/// All that is known of a run in the end.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    pub(super) planned: &'a PlannedRun,
    pub(super) state: Option<StateType>,
    /// Whether the server took a cancellation.
    pub(super) cancelled: bool,
    pub(super) witness: &'a Witness,
    pub(super) containers: &'a [ContainerEnd],
    pub(super) strikes: &'a [Struck],
}

impl Evidence<'_> {
    /// What is wrong with the run.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let ended = self.state.filter(|state| state.is_final());
        let was_started = self.witness.starts() > 0 || self.containers.iter().any(was_started);
        if ended.is_none() {
            faults.push(Fault::Stuck);
        }
        if !was_started && !self.cancelled && ended.is_some() {
            faults.push(Fault::Lost);
        }
        if self.witness.starts() > 1 {
            faults.push(Fault::Doubled);
        }
        if let Some(ended) = ended
            && was_started
            && !self.allowed().contains(&ended)
        {
            faults.push(Fault::Wrong);
        }
        let must_be_gone =
            |container: &ContainerEnd| self.planned.auto_remove || container.status != "exited";
        if self.containers.iter().any(must_be_gone) {
            faults.push(Fault::Leaked);
        }
        faults
    }

    /// The final states that tell what happened.
    fn allowed(&self) -> Vec<StateType> {
        let mut allowed = Vec::new();
        if let Some(reported) = self.witness.reported() {
            allowed.push(reported);
        } else if self.witness.ended() {
            allowed.push(self.planned.natural_end());
        } else if self.killed_with_engine() {
            // Its last report may have been taken while nobody was left to witness that.
            allowed.extend([StateType::Crashed, self.planned.natural_end()]);
        }
        if self.cancelled {
            allowed.push(StateType::Cancelled);
            // The server took the cancellation: only a report of the flow itself comes before it.
            allowed.retain(|state| *state == StateType::Cancelled || Some(*state) == self.witness.reported());
        }
        allowed
    }

    /// Whether an engine that came back may have ended the run's container.
    fn killed_with_engine(&self) -> bool {
        let ended_containers = |struck: &&Struck| struck.strike.ends_containers();
        let started = self.witness.started_at().unwrap_or_default();
        self.strikes.iter().filter(ended_containers).any(|struck| struck.back_at >= started)
    }
}

/// Whether a container's program ever ran: the engine writes year 1 where it did not.
fn was_started(container: &ContainerEnd) -> bool {
    !container.started_at.is_empty() && !container.started_at.starts_with("0001")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::worker::plan::{Part, Progress, Strike};
    use crate::puppet::{Behaviour, End};

    fn planned(end: End) -> PlannedRun {
        let behaviour = Behaviour { reports: true, listens: false, deaf: false, millis: 0, end, code: 3 };
        PlannedRun { behaviour, auto_remove: true, limited: false, exit_counts: false, cancel: None }
    }

    fn struck(live_restore: bool) -> Struck {
        let strike = Strike {
            part: Part::Engine,
            after: Progress::Starts,
            count: 1,
            delay: 0,
            away: 0,
            live_restore,
            gently: false,
        };
        Struck { strike, killed_at: 50, back_at: 60 }
    }

    fn faults(planned: &PlannedRun, state: StateType, witness: &Witness, strikes: &[Struck]) -> Vec<Fault> {
        let cancelled = state == StateType::Cancelled;
        Evidence { planned, state: Some(state), cancelled, witness, containers: &[], strikes }.faults()
    }

    #[test]
    fn a_run_must_end_as_its_program_did() {
        let completing = planned(End::Complete);
        let done = Witness::of(["10 start", "20 reported COMPLETED", "30 end 0"]);
        assert_eq!(faults(&completing, StateType::Completed, &done, &[]), []);
        assert_eq!(faults(&completing, StateType::Crashed, &done, &[]), [Fault::Wrong]);
        assert_eq!(faults(&completing, StateType::Running, &done, &[]), [Fault::Stuck]);
        let exited = Witness::of(["10 start", "30 end 3"]);
        assert_eq!(faults(&planned(End::Exit), StateType::Crashed, &exited, &[]), []);
        assert_eq!(faults(&planned(End::Exit), StateType::Completed, &exited, &[]), [Fault::Wrong]);
        let mut counting = planned(End::Exit);
        counting.exit_counts = true;
        assert_eq!(faults(&counting, StateType::Crashed, &exited, &[]), []);
        counting.behaviour.code = 0;
        let quiet = Witness::of(["10 start", "30 end 0"]);
        assert_eq!(faults(&counting, StateType::Completed, &quiet, &[]), []);
        assert_eq!(faults(&counting, StateType::Crashed, &quiet, &[]), [Fault::Wrong]);
    }

    #[test]
    fn only_an_engine_may_kill() {
        let killed = Witness::of(["55 start"]);
        let planned = planned(End::Complete);
        assert_eq!(faults(&planned, StateType::Crashed, &killed, &[]), [Fault::Wrong]);
        assert_eq!(faults(&planned, StateType::Crashed, &killed, &[struck(true)]), [Fault::Wrong]);
        assert_eq!(faults(&planned, StateType::Crashed, &killed, &[struck(false)]), []);
        let later = Witness::of(["70 start"]);
        assert_eq!(faults(&planned, StateType::Crashed, &later, &[struck(false)]), [Fault::Wrong]);
        assert_eq!(faults(&planned, StateType::Cancelled, &killed, &[]), []);
    }

    #[test]
    fn every_run_is_started_once_and_leaves_nothing() {
        let planned = planned(End::Complete);
        let twice = Witness::of(["10 start", "20 start", "30 reported COMPLETED", "40 end 0"]);
        assert_eq!(faults(&planned, StateType::Completed, &twice, &[]), [Fault::Doubled]);
        let never = Witness::default();
        assert_eq!(faults(&planned, StateType::Crashed, &never, &[]), [Fault::Lost]);
        assert_eq!(faults(&planned, StateType::Cancelled, &never, &[]), []);
        let left = ContainerEnd {
            id: "c".to_owned(),
            status: "exited".to_owned(),
            exit_code: Some(0),
            started_at: "2026-11-25T02:06:50Z".to_owned(),
            finished_at: String::new(),
        };
        let done = Witness::of(["10 start", "20 reported COMPLETED", "30 end 0"]);
        let containers = [left];
        let evidence = Evidence {
            planned: &planned,
            state: Some(StateType::Completed),
            cancelled: false,
            witness: &done,
            containers: &containers,
            strikes: &[],
        };
        assert_eq!(evidence.faults(), [Fault::Leaked]);
    }
}
