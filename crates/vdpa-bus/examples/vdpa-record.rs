// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Prints the bytes of one netlink exchange with the kernel, as `tests/recorded/` has them. Run in the lab
//! by `lab/vdpa-record.sh`; needs root and the module vdpa.
//!
//! `vdpa-record TITLE mgmt | devices | configs | device DEV | config DEV | stats DEV | add DEV PARENT
//! [FEATURES] | delete DEV`

use std::error::Error;
use std::io;
use std::time::Duration;

use vdpa_bus::management::{AddDevice, KernelLink, Link, Management, ManagementError};

/// Prints what passes.
struct Recorder(KernelLink);

fn print(sign: char, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{sign} {hex}");
}

impl Link for Recorder {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        print('>', request);
        self.0.send(request)
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let datagram = self.0.receive()?;
        print('<', &datagram);
        Ok(datagram)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [title, command @ ..] = arguments.as_slice() else {
        return Err("usage: vdpa-record TITLE COMMAND [ARGUMENT]...".into());
    };
    println!("= {title}");
    let link = Recorder(KernelLink::open(Duration::from_secs(10))?);
    let mut client = Management::with_link(link)?;
    // What it means is for the tests to say; only what was not recorded is a failure.
    let outcome = match command {
        ["mgmt"] => client.management_devices().map(drop),
        ["devices"] => client.devices().map(drop),
        ["configs"] => client.configs().map(drop),
        ["device", device] => client.device(&device.parse()?).map(drop),
        ["config", device] => client.config(&device.parse()?).map(drop),
        ["stats", device] => client.vendor_stats(&device.parse()?, 0).map(drop),
        ["delete", device] => client.delete(&device.parse()?),
        ["add", device, parent] => client.add(&AddDevice::new(device.parse()?, parent.parse()?)),
        ["add", device, parent, features] => {
            let device = AddDevice::new(device.parse()?, parent.parse()?);
            client.add(&device.device_features(features.parse()?))
        }
        _ => return Err(format!("unknown: {command:?}").into()),
    };
    match outcome {
        Ok(()) | Err(ManagementError::Refused { .. } | ManagementError::NoDevice(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
