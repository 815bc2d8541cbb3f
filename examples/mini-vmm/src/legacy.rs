// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a PC has at fixed ports: serial port, keyboard controller, and our power control.

use std::io::{self, Write};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{I8042Device, Serial, Trigger};

use crate::bus::{Bus, BusDevice, Shared, lock};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::interrupt::{LineTrigger, Router};
use crate::memory::{Memory, RESET_VECTOR};

pub const SERIAL_PORT: u16 = 0x3f8;
pub const SERIAL_LINE: u32 = 4;
/// ACPI sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;
pub const RESET_VALUE: u8 = 1;
pub const SLEEP_TYPE_OFF: u8 = 5;
const I8042_PORT: u16 = 0x60;
/// The built-in guest's last word, at the port that QEMU uses for that.
const EXIT_PORT: u16 = 0xf4;

/// Where what the guest prints goes.
pub type Output = Box<dyn Write + Send>;

/// The console.
pub struct Console(Serial<LineTrigger, NoEvents, Output>);

impl Console {
    /// Hands over what was typed, as much as there is room for. Returns how much.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let room = self.0.fifo_capacity().min(bytes.len());
        let Some(bytes) = bytes.get(..room) else {
            return 0;
        };
        self.0.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    pub fn save(&self) -> SavedConsole {
        SavedConsole(self.0.state())
    }
}

/// The console as saved.
#[derive(Serialize, Deserialize)]
pub struct SavedConsole(#[serde(with = "SerialFields")] SerialState);

/// [`SerialState`] for serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState")]
struct SerialFields {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl BusDevice for Console {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.0.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            // A terminal that is gone must not stop the guest.
            let _ = self.0.write(offset as u8, *byte);
        }
    }
}

/// Tells the machine's owner.
struct ResetTrigger(Sender<Event>);

impl Trigger for ResetTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        let _ = self.0.send(Event::Reset);
        Ok(())
    }
}

struct Keyboard(I8042Device<ResetTrigger>);

impl BusDevice for Keyboard {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.0.read(offset as u8));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            let _ = self.0.write(offset as u8, *value);
        }
    }
}

struct Power(Sender<Event>);

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const SLEEP_ENABLE: u8 = 1 << 5;
        let event = match (offset, data) {
            (0, [value]) if *value == SLEEP_ENABLE | SLEEP_TYPE_OFF << 2 => Event::PowerOff(0),
            (2, [RESET_VALUE]) => Event::Reset,
            _ => return,
        };
        let _ = self.0.send(event);
    }
}

struct Exit(Sender<Event>);

impl BusDevice for Exit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [status] = data {
            let _ = self.0.send(Event::PowerOff(*status));
        }
    }
}

/// All our firmware, at the reset vector: `mov al, 0xfe; out 0x64, al; hlt`. Linux without the PC's old
/// hardware in ACPI reboots by jumping there, in real mode.
pub fn write_firmware(memory: &Memory) -> Result<()> {
    const CODE: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    memory
        .write_slice(&CODE, GuestAddress(RESET_VECTOR))
        .map_err(|error| Error::Memory(error.to_string()))
}

/// Puts these devices on the bus of ports.
pub fn attach(
    ports: &Bus,
    router: &Arc<Router>,
    output: Output,
    events: &Sender<Event>,
    exit_port: bool,
    saved: Option<&SavedConsole>,
) -> Result<Arc<Mutex<Console>>> {
    let line = router.line(Some(SERIAL_LINE))?;
    let state = saved.map_or_else(SerialState::default, |saved| saved.0.clone());
    let serial = Serial::from_state(&state, LineTrigger(line), NoEvents, output)
        .map_err(|error| Error::Snapshot(format!("the console: {error:?}")))?;
    let console = Console(serial);
    let console = Arc::new(Mutex::new(console));
    ports.insert(SERIAL_PORT.into(), 8, console.clone());
    let keyboard = Keyboard(I8042Device::new(ResetTrigger(events.clone())));
    let rest: [(u16, u64, Shared); 2] = [
        (I8042_PORT, 5, Arc::new(Mutex::new(keyboard))),
        (POWER_PORT, 3, Arc::new(Mutex::new(Power(events.clone())))),
    ];
    for (port, len, device) in rest {
        ports.insert(port.into(), len, device);
    }
    if exit_port {
        let exit = Exit(events.clone());
        ports.insert(EXIT_PORT.into(), 1, Arc::new(Mutex::new(exit)));
    }
    Ok(console)
}

/// Passes on what is typed, until the input or the process ends. Ctrl-A x powers the machine off.
pub fn read_terminal(
    console: &Mutex<Arc<Mutex<Console>>>,
    input: &mut impl io::Read,
    events: &Sender<Event>,
) {
    const ESCAPE: u8 = 1;
    let mut escaped = false;
    let mut byte = [0];
    while let Ok(1) = input.read(&mut byte) {
        let [typed] = byte;
        if escaped && typed == b'x' {
            let _ = events.send(Event::PowerOff(0));
            return;
        }
        escaped = !escaped && typed == ESCAPE;
        if !escaped {
            // A guest that doesn't read loses what is typed, as on real hardware.
            let console = lock(console).clone();
            lock(&console).input(&byte);
        }
    }
}
