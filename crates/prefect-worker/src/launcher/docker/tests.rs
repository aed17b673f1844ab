//! What the launcher ships.

use prefect_api::template::JobTemplate;

use super::*;

#[test]
fn the_default_template_is_a_valid_one_with_prefects_variables() {
    let template = JobTemplate::parse(&default_template()).unwrap();
    let mut names: Vec<&str> = template.variable_names().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "auto_remove",
            "command",
            "container_create_kwargs",
            "env",
            "image",
            "image_pull_policy",
            "labels",
            "mem_limit",
            "memswap_limit",
            "name",
            "network_mode",
            "networks",
            "privileged",
            "registry_credentials",
            "stream_output",
            "volumes",
        ]
    );
}
