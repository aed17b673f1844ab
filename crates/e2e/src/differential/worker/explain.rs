//! The differences that we stand by. Each is a row of `docs/compatibility.md`, where its reason is.

use crate::compare::{Difference, Explanation};

fn only_python_launches(found: &Difference) -> bool {
    found.path == "outcome" && found.reference == "launched"
}

fn only_ours_launches(found: &Difference) -> bool {
    found.path == "outcome" && found.ours == "launched"
}

/// All of them.
pub const TABLE: &[Explanation] = &[
    Explanation {
        difference: "`PREFECT_HOME`, `PREFECT_WORKER_*`, `PREFECT_SERVER_*` are not handed to containers",
        covers: |found| {
            let name = found.path.strip_prefix("Config.Env.").unwrap_or_default();
            found.ours.is_null()
                && (name == "PREFECT_HOME"
                    || name.starts_with("PREFECT_WORKER_")
                    || name.starts_with("PREFECT_SERVER_"))
        },
    },
    Explanation {
        difference: "`auto_remove` is done by the worker, after the end of the run is reported",
        covers: |found| found.path == "HostConfig.AutoRemove" && found.reference == true,
    },
    Explanation {
        difference: "a container that could not be started is removed",
        covers: |found| found.path == "containers left" && found.ours == 0,
    },
    Explanation {
        difference: "what docker-py or the engine would drop silently from `container_create_kwargs` is an error \
                     that names it: unknown keys inside its objects, `lxc_conf`, `kernel_memory`, entries of \
                     `extra_hosts` without an address, a text for `group_add`",
        covers: |found| {
            only_python_launches(found)
                && [
                    "kwargs/group-add-text",
                    "kwargs/healthcheck-unknown-key",
                    "kwargs/lxc-conf",
                    "kwargs/mounts-python-names",
                    "memory/kernel-memory",
                    "network/extra-hosts-no-colon",
                    "network/extra-hosts-text",
                ]
                .contains(&found.case.as_str())
        },
    },
    Explanation {
        difference: "`mac_address` of `container_create_kwargs` is refused",
        covers: |found| only_python_launches(found) && found.case == "kwargs/mac-address",
    },
    Explanation {
        difference: "settings of `networking_config` apply to every network of `networks`, and for other networks \
                     they are an error",
        covers: |found| {
            only_python_launches(found)
                && ["network/networking-config-other-network", "network/networking-config-without-networks"]
                    .contains(&found.case.as_str())
        },
    },
    Explanation {
        difference: "`null` counts as absent, whatever the variable",
        covers: |found| {
            only_ours_launches(found) && (found.case.ends_with("/null") || found.case.ends_with("-null"))
        },
    },
    Explanation {
        difference: "amounts of memory may be numbers of bytes, and may end in `t`",
        covers: |found| {
            only_ours_launches(found) && ["memory/number", "memory/terabytes"].contains(&found.case.as_str())
        },
    },
    Explanation {
        difference: "volumes take all of Docker's options (`z`, `Z`, `nocopy`, `rslave` …)",
        covers: |found| {
            only_ours_launches(found)
                && ["volumes/no-copy", "volumes/private-label", "volumes/propagation", "volumes/relinked"]
                    .contains(&found.case.as_str())
        },
    },
    Explanation {
        difference: "whole numbers of more than 64 bits are rounded",
        covers: |found| found.case == "env/numbers-and-flags" && found.path == "Config.Env.LARGE",
    },
    Explanation {
        difference: "an empty name in `networks` is an error",
        covers: |found| only_python_launches(found) && found.case == "network/empty-item",
    },
    Explanation {
        difference: "an empty `image_pull_policy` counts as absent",
        covers: |found| only_ours_launches(found) && found.case == "image/policy-empty",
    },
    Explanation {
        difference: "a name that is nothing but a reference without a value is the run's; objects in names are in \
                     alphabetical order",
        covers: |found| {
            found.path == "Name"
                && ["name/context-absent-whole", "name/context-labels", "name/context-objects"]
                    .contains(&found.case.as_str())
        },
    },
    Explanation {
        difference: "in container names, letters outside Latin may be transliterated otherwise than by Python; \
                     HTML entities stay as they are",
        covers: |found| {
            found.path == "Name"
                && ["name/run-name-entities", "name/run-name-latin", "name/run-name-other-scripts"]
                    .contains(&found.case.as_str())
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_explanation_is_documented() {
        crate::compare::assert_documented(TABLE);
    }
}
