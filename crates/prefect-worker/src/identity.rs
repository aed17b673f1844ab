//! Where this process is: its container, if it is in one, and its machine.

/// The short id of the container that this process is in; `None` outside, or in one of an engine that leaves
/// no traces.
pub(crate) fn container_id() -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    id_in(&mounts).map(str::to_owned)
}

/// The name of this machine, or of this container.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Files that engines mount into each container from a directory that is called after it.
const OWN_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The short id of the container whose mounts these are. On a host there may be mounts of its containers too.
fn id_in(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|mount| {
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let (_, rest) = root.rsplit_once("containers/").filter(|_| OWN_FILES.contains(&point))?;
        let whole = rest.get(..64)?;
        whole.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(whole.get(..12)?)
    })
}

#[cfg(test)]
mod tests {
    use super::id_in;

    #[test]
    fn a_container_knows_its_id_by_its_mounts() {
        let id = "0123456789ab".to_owned() + &"c".repeat(52);
        for root in [
            "/var/lib/docker/containers/ID/hostname",
            "/c/containers/storage/overlay-containers/ID/userdata/hostname",
        ] {
            let root = root.replace("ID", &id);
            let mounts = format!(
                "24 1 8:1 / / rw - ext4 /dev/vda rw\n731 720 254:0 {root} /etc/hostname rw - ext4 /dev/vda rw\n"
            );
            assert_eq!(id_in(&mounts), Some("0123456789ab"));
        }
        let of_another = format!("9 1 0:50 / /var/lib/docker/containers/{id}/mounts/shm rw - tmpfs shm rw");
        for none in
            ["", "24 1 8:1 / / rw - ext4 /dev/sda1 rw", "1 1 8:1 /containers/short /etc/hosts", &of_another]
        {
            assert_eq!(id_in(none), None);
        }
    }
}
