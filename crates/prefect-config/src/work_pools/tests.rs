use std::path::Path;

use super::{Limit, WorkPoolSpec, load};
use crate::{Environment, Error};

const TEMPLATE: &str = r#"{"job_configuration": {"image": "{{ image }}"}, "variables": {"properties": {"image": {"default": "NAME"}}}}"#;

/// A directory `pools` with these files, and `templates` with the templates a.json and b.json beside it.
fn read(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Vec<WorkPoolSpec>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for name in ["a", "b"] {
        write(&format!("templates/{name}.json"), &TEMPLATE.replace("NAME", name));
    }
    write("templates/bad.json", &TEMPLATE.replace("{{ image }}", "{{ picture }}"));
    for (name, content) in files {
        write(&format!("pools/{name}"), content);
    }
    load(&directory.path().join("pools"), &environment.iter().copied().collect::<Environment>())
}

fn pool(rest: &str) -> String {
    format!("name = 'p'\ntype = 'docker'\nbase_job_template = '../templates/a.json'\n{rest}")
}

fn image(pool: &WorkPoolSpec) -> &str {
    pool.template.variables["properties"]["image"]["default"].as_str().unwrap()
}

#[test]
fn a_file_is_a_pool_with_its_queues() {
    let content = pool(
        "concurrency_limit = 4\n[[queues]]\nname = 'high'\npriority = 1\nconcurrency_limit = 'unlimited'",
    );
    let pools = read(&[("p.toml", &content), ("notes.txt", "not a pool")], &[]).unwrap();
    let [pool] = pools.as_slice() else { panic!("one pool, not {pools:?}") };
    assert_eq!((pool.name.as_str(), pool.kind.as_str(), pool.limit), ("p", "docker", Some(Limit::At(4))));
    assert_eq!(image(pool), "a");
    assert_eq!(pool.queues[0].limit, Some(Limit::Unlimited));
    assert_eq!((pool.queues[0].priority, &pool.queues[0].description), (Some(1), &None));
}

#[test]
fn the_environment_chooses_the_template() {
    let files = [("p.toml", pool(""))];
    let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_str())).collect();
    let chosen = |value: &str| read(&files, &[("PREFECT_JOB_TEMPLATE", value)]);
    assert_eq!(image(&chosen("b.json").unwrap()[0]), "b");
    assert_eq!(image(&chosen("").unwrap()[0]), "a");

    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), TEMPLATE).unwrap();
    assert_eq!(image(&chosen(elsewhere.path().to_str().unwrap()).unwrap()[0]), "NAME");
    assert!(matches!(chosen("c.json"), Err(Error::Unreadable { path, .. }) if path.ends_with("c.json")));
}

#[test]
fn faults_are_named() {
    let refused = |content: &str| read(&[("p.toml", content)], &[]).unwrap_err();
    assert_eq!(
        refused(&pool("concurency_limit = 1")).hint().unwrap(),
        "the nearest known key is concurrency_limit"
    );
    assert!(
        refused(&pool("concurrency_limit = 'many'")).to_string().contains("a whole number or \"unlimited\"")
    );
    assert!(refused(&pool("[[queues]]\nname = 'q'\npriority = 0")).to_string().contains("at least 1"));
    assert!(refused(&pool("[[queues]]\nname = 'q'\n[[queues]]\nname = 'q'")).to_string().contains("twice"));
    assert!(refused(&pool("").replace("'p'", "'prefect-x'")).to_string().contains("reserved"));
    assert!(refused(&pool("").replace("'p'", "'a/b'")).to_string().contains("cannot hold"));
    assert!(matches!(refused("name = 'p'\ntype = 'docker'"), Error::Missing { .. }));
    assert!(matches!(refused("name = "), Error::Malformed { .. }));
    let bad = refused(&pool("").replace("a.json", "bad.json"));
    assert!(std::error::Error::source(&bad).unwrap().to_string().contains("picture"));
}

#[test]
fn there_must_be_pools_and_no_two_of_one_name() {
    let (one, two) = (pool(""), pool(""));
    let doubled = read(&[("a.toml", &one), ("b.toml", &two)], &[]).unwrap_err().to_string();
    assert!(doubled.contains("b.toml: name: \"p\" is defined already, in ") && doubled.contains("a.toml"));
    assert!(read(&[("x.txt", "")], &[]).unwrap_err().to_string().contains("no .toml file"));
    assert!(matches!(load(Path::new("/nowhere"), &Environment::default()), Err(Error::Unreadable { .. })));
}
