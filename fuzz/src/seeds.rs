// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the fuzzer starts from: inputs that reach the parts worth reaching.

use std::path::Path;
use std::{fs, io};

use crate::{
    Encode, device, nbd_client, nbd_server, netlink, path_switch, qcow2, ring, ring_vs_queue,
    slow_path, vduse, vhost_user,
};

/// A seed: target, name and bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// All seeds.
pub fn all() -> Vec<Seed> {
    let mut list = Vec::new();
    append(&mut list, "ring", ring::seeds::all());
    append(&mut list, "ring_vs_queue", ring_vs_queue::seeds::all());
    append(&mut list, "device", device::seeds::all());
    append(&mut list, "nbd_client", nbd_client::seeds::all());
    append(&mut list, "qcow2", qcow2::seeds::all());
    append(&mut list, "vhost_user", vhost_user::seeds::all());
    append(&mut list, "nbd_server", nbd_server::seeds::all());
    append(&mut list, "netlink", netlink::seeds::all());
    append(&mut list, "slow_path", slow_path::seeds::all());
    append(&mut list, "path_switch", path_switch::seeds::all());
    append(&mut list, "vduse", vduse::seeds::all());
    list
}

fn append<T: Encode>(list: &mut Vec<Seed>, target: &'static str, seeds: Vec<(&'static str, T)>) {
    for (name, input) in seeds {
        let mut bytes = Vec::new();
        input.encode(&mut bytes);
        list.push((target, name, bytes));
    }
}

/// Writes all seeds to a folder for each target.
///
/// # Errors
/// A file could not be written.
pub fn write(to: &Path) -> io::Result<()> {
    for (target, name, bytes) in all() {
        let folder = to.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;

    use arbitrary::{Arbitrary, Unstructured};

    use super::*;

    fn decode<T: for<'a> Arbitrary<'a>>(bytes: &[u8]) -> T {
        T::arbitrary(&mut Unstructured::new(bytes)).unwrap()
    }

    fn round_trip<T>(seeds: Vec<(&'static str, T)>, run: impl Fn(&T))
    where
        T: Encode + PartialEq + Debug + for<'a> Arbitrary<'a>,
    {
        assert!(!seeds.is_empty());
        for (name, input) in seeds {
            let mut bytes = Vec::new();
            input.encode(&mut bytes);
            assert_eq!(decode::<T>(&bytes), input, "{name}");
            run(&input);
        }
    }

    #[test]
    fn ring_seeds_mean_what_they_say_and_pass() {
        round_trip(ring::seeds::all(), ring::run);
    }

    #[test]
    fn ring_vs_queue_seeds_mean_what_they_say_and_pass() {
        round_trip(ring_vs_queue::seeds::all(), ring_vs_queue::run);
    }

    #[test]
    fn device_seeds_mean_what_they_say_and_pass() {
        round_trip(device::seeds::all(), device::run);
    }

    #[test]
    fn nbd_client_seeds_mean_what_they_say_and_pass() {
        round_trip(nbd_client::seeds::all(), nbd_client::run);
    }

    #[test]
    fn qcow2_seeds_mean_what_they_say_and_pass() {
        round_trip(qcow2::seeds::all(), qcow2::run);
    }

    #[test]
    fn qemu_finds_nothing_in_sound_images_that_were_used() {
        let seeds = qcow2::seeds::all();
        let judged = qcow2::judge(seeds.iter().map(|(_, input)| input));
        assert!(judged >= 5, "{judged}");
    }

    #[test]
    fn vhost_user_seeds_mean_what_they_say_and_pass() {
        round_trip(vhost_user::seeds::all(), vhost_user::run);
    }

    #[test]
    fn nbd_server_seeds_mean_what_they_say_and_pass() {
        round_trip(nbd_server::seeds::all(), nbd_server::run);
    }

    #[test]
    fn netlink_seeds_mean_what_they_say_and_pass() {
        round_trip(netlink::seeds::all(), netlink::run);
    }

    #[test]
    fn slow_path_seeds_mean_what_they_say_and_pass() {
        round_trip(slow_path::seeds::all(), slow_path::run);
    }

    #[test]
    fn path_switch_seeds_mean_what_they_say_and_pass() {
        round_trip(path_switch::seeds::all(), path_switch::run);
    }

    #[test]
    fn vduse_seeds_mean_what_they_say_and_pass() {
        round_trip(vduse::seeds::all(), vduse::run);
    }

    #[test]
    fn the_files_are_up_to_date() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        let mut known = BTreeSet::new();
        for (target, name, bytes) in all() {
            let path = folder.join(target).join(name);
            let hint = "run `cargo run --example write_seeds`";
            let file =
                fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; {hint}", path.display()));
            assert!(file == bytes, "{} is stale; {hint}", path.display());
            assert!(known.insert(path));
        }
        for target in fs::read_dir(folder).unwrap() {
            for file in fs::read_dir(target.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                // What the fuzzer found once lies beside the seeds.
                let found = path
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with("found-");
                assert!(found || known.contains(&path), "{}", path.display());
            }
        }
    }

    #[test]
    fn any_bytes_are_an_input() {
        let mut state = 1_u64;
        for len in 0..300 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .take(len)
            .collect();
            ring::run(&decode(&bytes));
            ring_vs_queue::run(&decode(&bytes));
            device::run(&decode(&bytes));
            nbd_client::run(&decode(&bytes));
            qcow2::run(&decode(&bytes));
            vhost_user::run(&decode(&bytes));
            nbd_server::run(&decode(&bytes));
            netlink::run(&decode(&bytes));
            slow_path::run(&decode(&bytes));
            // These start threads, and wait for them.
            if len % 4 == 0 {
                path_switch::run(&decode(&bytes));
                vduse::run(&decode(&bytes));
            }
        }
    }
}
