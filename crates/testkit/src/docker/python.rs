//! The peer's image: Python, Prefect and a Python flow, made without a registry and without a distribution.
//!
//! Its parts come from the virtual environment that the server runs from: the interpreter, its standard library,
//! the packages, and the shared libraries that `ldd` names for any of them. They move to fixed places, so that
//! nothing in the image depends on where this machine keeps its Python:
//!
//! - `/opt/python`: interpreter and standard library, found by the interpreter relative to itself;
//! - `/opt/native`: shared libraries;
//! - `/opt/venv`: a virtual environment over it with the packages and the program `prefect`;
//! - `/opt/flow/flow.py`: the flows `greet`, `empty` and `fail`.
//!
//! That takes some 15 seconds, where a root file system from Debian's packages takes minutes, a mirror and root.
//! The image is kept under its tag; a label with a digest of
//! the recipe tells when it is stale.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use s3s::crypto::{Checksum, Sha256};
use serde::Deserialize;

use super::engine::Engine;
use super::image::Image;
use super::libraries::{LIBRARY_DIR, shared_libraries};
use crate::prefect::{VERSION, Venv};
use crate::process::Command;

/// Tag of the image.
pub const PYTHON_IMAGE: &str = "ferryman-peer-prefect:3.7.2";

const FLOW: &str = include_str!("../../assets/flow.py");
const RECIPE: &str = include_str!("python.rs");
const RECIPE_LABEL: &str = "ferryman.recipe";

const LAYOUT: &str = "
import json, os, sys, sysconfig
print(json.dumps({
    'interpreter': os.path.realpath(sys.executable),
    'version': 'python%d.%d' % sys.version_info[:2],
    'stdlib': os.path.join(sys.base_prefix, 'lib', 'python%d.%d' % sys.version_info[:2])
        if os.path.isfile(os.path.join(sys.base_prefix, 'lib', 'python%d.%d' % sys.version_info[:2], 'os.py'))
        else os.path.dirname(os.__file__),
    'extensions': sysconfig.get_config_var('DESTSHARED'),
    'packages': sysconfig.get_path('purelib'),
}))";

/// Large parts of the standard library that no flow run needs, and what is collected on its own.
const LEFT_OUT: [&str; 9] = [
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "lib-dynload",
];

/// Large packages, or parts of them, that no flow run needs.
const PACKAGES_LEFT_OUT: [&str; 3] = ["pip", "ui", "ui-v2"];

const DEADLINE: Duration = Duration::from_mins(2);

#[derive(Debug, Deserialize)]
struct Layout {
    interpreter: PathBuf,
    version: String,
    stdlib: PathBuf,
    extensions: PathBuf,
    packages: PathBuf,
}

/// Makes the image, unless the engine has it, and gives its tag.
pub async fn python_image(engine: &Engine, venv: &Venv) -> Result<String> {
    let recipe = Sha256::checksum(format!("{RECIPE}{FLOW}{VERSION}").as_bytes());
    let recipe = BASE64_URL_SAFE_NO_PAD.encode(recipe);
    let _lock = venv.lock("image.lock").await?;
    if engine.image_label(PYTHON_IMAGE, RECIPE_LABEL).await?.as_deref() == Some(recipe.as_str()) {
        return Ok(PYTHON_IMAGE.to_owned());
    }
    let stale = engine.image_id(PYTHON_IMAGE).await?;
    let output = Command::new(venv.python()).args(["-c", LAYOUT]).output(DEADLINE).await?.success()?;
    let layout: Layout =
        serde_json::from_str(&output.stdout).context("failed to understand Python's layout")?;
    let lib = Path::new("/opt/python/lib").join(&layout.version);
    let packages = Path::new("/opt/venv/lib").join(&layout.version).join("site-packages");
    let interpreter = Path::new("/opt/python/bin").join(&layout.version);

    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    files.insert(interpreter.clone(), layout.interpreter.clone());
    collect(&layout.stdlib, &lib, &LEFT_OUT, &mut files)?;
    collect(&layout.extensions, &lib.join("lib-dynload"), &[], &mut files)?;
    collect(&layout.packages, &packages, &PACKAGES_LEFT_OUT, &mut files)?;
    let programs: Vec<&PathBuf> =
        files.values().filter(|file| **file == layout.interpreter || is_library(file)).collect();
    let libraries = shared_libraries(&programs, Some(&layout.packages)).await?;

    let script = b"#!/opt/venv/bin/python\nimport sys\nfrom prefect.cli import app\nsys.exit(app())\n";
    let config = "home = /opt/python/bin\ninclude-system-site-packages = false\n";
    let mut image = Image::scratch()
        .dir("/tmp", 0o1777)
        .dir("/root", 0o700)
        .bytes("/etc/passwd", "root:x:0:0:root:/root:/bin/false\n", 0o644)
        .bytes("/etc/group", "root:x:0:\n", 0o644)
        .bytes("/opt/venv/pyvenv.cfg", config, 0o644)
        .symlink("/opt/venv/bin/python", interpreter)
        .bytes("/opt/venv/bin/prefect", script.as_slice(), 0o755)
        .bytes("/opt/flow/flow.py", FLOW, 0o644)
        .env("PATH", "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin")
        .env("LD_LIBRARY_PATH", LIBRARY_DIR)
        .env("PYTHONUNBUFFERED", "1")
        .label(RECIPE_LABEL, recipe)
        .workdir("/opt/flow")
        .cmd(["prefect", "version"])
        .kept();
    for (path, host) in files.into_iter().chain(libraries) {
        image = image.file(path, host);
    }
    engine.build_image(PYTHON_IMAGE, image).await.context("failed to make the image of the Python peer")?;
    if let Some(stale) = stale
        && let Err(error) = engine.remove_image(&stale).await
    {
        tracing::warn!("the stale image of the Python peer stays: {error:#}");
    }
    Ok(PYTHON_IMAGE.to_owned())
}

/// Collects a tree of files, following links, without what is left out.
fn collect(from: &Path, to: &Path, left_out: &[&str], files: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to read {}", from.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if left_out.contains(&name.as_ref()) || name.starts_with("config-") {
            continue;
        }
        if path.is_dir() {
            collect(&path, &to.join(name.as_ref()), left_out, files)?;
        } else if path.is_file() {
            files.insert(to.join(name.as_ref()), path);
        }
    }
    Ok(())
}

fn is_library(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        let name = name.to_string_lossy();
        name.ends_with(".so") || name.contains(".so.")
    })
}
