// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What to do about an error.

use std::path::Path;

use vdpa_bus::management::ManagementError;

use super::VdpaCommand;

const EPERM: i32 = 1;
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// The error, and the command that helps where there is one.
pub fn explain(error: &ManagementError, command: &VdpaCommand) -> String {
    match hint(error, command) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn hint(error: &ManagementError, command: &VdpaCommand) -> Option<String> {
    match (error, error.errno(), command) {
        (ManagementError::NoDevice(_), ..) => {
            Some("`vblk vdpa list` shows those there are".to_owned())
        }
        (_, Some(EPERM | EACCES), _) => Some("this needs root (CAP_NET_ADMIN)".to_owned()),
        (ManagementError::Refused { errno, .. }, _, VdpaCommand::Add(args)) => match *errno {
            ENODEV if args.mgmtdev.device() == "vduse" => {
                Some("load the module: modprobe vduse".to_owned())
            }
            ENODEV => Some("`vblk vdpa mgmt` shows those there are".to_owned()),
            EEXIST => Some(format!(
                "`vblk vdpa show {name}` shows it, `vblk vdpa del {name}` deletes it",
                name = args.name
            )),
            EOPNOTSUPP if !args.attributes().is_empty() => {
                let refused = args.attributes().join(" and ");
                Some(format!("try without {refused}"))
            }
            EINVAL if args.mgmtdev.device() == "vduse" => Some(vduse(args.name.as_str())),
            _ => None,
        },
        (ManagementError::Refused { errno, .. }, _, VdpaCommand::Set(_)) => match *errno {
            EOPNOTSUPP => Some("Linux 6.12 and later can".to_owned()),
            EINVAL => Some(
                "what made the device can't change that: delete it, and add it with --mac"
                    .to_owned(),
            ),
            _ => None,
        },
        (ManagementError::Refused { errno, .. }, _, VdpaCommand::Stats(_)) => match *errno {
            EOPNOTSUPP => Some(
                "the kernel has statistics of network devices only, where the vendor counts"
                    .to_owned(),
            ),
            EAGAIN => Some("there are none before a driver has negotiated features".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// VDUSE returns EINVAL alone, whatever it is.
fn vduse(name: &str) -> String {
    let node = Path::new("/dev/vduse").join(name);
    if node.exists() {
        format!(
            "{} exists, but not all its queues are set up",
            node.display()
        )
    } else {
        format!(
            "there is no {}: start the server of {name} first",
            node.display()
        )
    }
}
