// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Between devices and the kernel: eventfds bound to interrupt lines, messages that are routed like further
//! lines, and kicks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_allocator::IdAllocator;
use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::lock;
use crate::error::{Context, Error, Result};

/// Lines of the IO-APIC.
const LINES: u32 = 24;
const PIC_LINES: u32 = 8;
/// Lines below are the PC's own: timer, keyboard, serial port.
const FIRST_FREE_LINE: u32 = 5;
/// Messages get numbers beyond the IO-APIC's lines.
const MAX_ROUTES: u32 = 1023;

/// What devices ask of KVM.
pub trait KvmEvents: Send + Sync {
    /// Has a guest's write to `address` write the eventfd: any write, or a 32-bit one of this value.
    fn bind_kick(&self, event: &EventFd, address: u64, value: Option<u32>) -> Asked;
    /// Undoes [`KvmEvents::bind_kick`] with the same arguments.
    fn unbind_kick(&self, event: &EventFd, address: u64, value: Option<u32>) -> Asked;
    /// Has a write of the eventfd raise the interrupt of this number.
    fn bind_interrupt(&self, event: &EventFd, number: u32) -> Asked;
    /// Undoes [`KvmEvents::bind_interrupt`]. Whatever was on its way has arrived when it returns.
    fn unbind_interrupt(&self, event: &EventFd, number: u32) -> Asked;
    /// Replaces the table of where interrupts lead.
    fn route(&self, table: &KvmIrqRouting) -> Asked;
}

type Asked = std::result::Result<(), kvm_ioctls::Error>;

impl KvmEvents for VmFd {
    fn bind_kick(&self, event: &EventFd, address: u64, value: Option<u32>) -> Asked {
        let address = IoEventAddress::Mmio(address);
        match value {
            Some(value) => self.register_ioevent(event, &address, value),
            None => self.register_ioevent(event, &address, NoDatamatch),
        }
    }

    fn unbind_kick(&self, event: &EventFd, address: u64, value: Option<u32>) -> Asked {
        let address = IoEventAddress::Mmio(address);
        match value {
            Some(value) => self.unregister_ioevent(event, &address, value),
            None => self.unregister_ioevent(event, &address, NoDatamatch),
        }
    }

    fn bind_interrupt(&self, event: &EventFd, number: u32) -> Asked {
        self.register_irqfd(event, number)
    }

    fn unbind_interrupt(&self, event: &EventFd, number: u32) -> Asked {
        self.unregister_irqfd(event, number)
    }

    fn route(&self, table: &KvmIrqRouting) -> Asked {
        self.set_gsi_routing(table)
    }
}

/// An eventfd that raises an interrupt in the guest when it is written. Its number is free again once this
/// is dropped.
pub struct Line {
    pub number: u32,
    event: EventFd,
    router: Arc<Router>,
}

impl Line {
    /// Raises the interrupt.
    pub fn trigger(&self) {
        // Only a full counter could fail, and then an interrupt is on its way.
        let _ = self.event.write(1);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // It was registered, so that it can be unregistered.
        let _ = self.router.vm.unbind_interrupt(&self.event, self.number);
        let mut state = lock(&self.router.state);
        state.routes.remove(&self.number);
        // Those that are fixed were never allocated.
        let _ = match self.number {
            0..LINES => state.lines.free_id(self.number),
            _ => state.messages.free_id(self.number),
        };
    }
}

/// An eventfd of somebody else's that KVM takes for an interrupt as long as it is bound to one. What comes otherwise is
/// for who waits for the eventfd.
pub struct Source {
    event: Arc<EventFd>,
    bound: Option<u32>,
    router: Arc<Router>,
}

impl Source {
    pub fn new(event: Arc<EventFd>, router: Arc<Router>) -> Self {
        Self {
            event,
            bound: None,
            router,
        }
    }

    /// Binds it to the interrupt of this number, or to none. What was written before interrupts at once.
    pub fn bind(&mut self, number: Option<u32>) {
        if self.bound == number {
            return;
        }
        let vm = &self.router.vm;
        if let Some(old) = self.bound.take() {
            // It was registered, so that it can be unregistered.
            let _ = vm.unbind_interrupt(&self.event, old);
        }
        if let Some(new) = number {
            match vm.bind_interrupt(&self.event, new) {
                Ok(()) => self.bound = number,
                Err(error) => log::info!("interrupts pass the VMM: {error}"),
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.bind(None);
    }
}

/// For the devices of vm-superio.
pub struct LineTrigger(pub Line);

impl Trigger for LineTrigger {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.trigger();
        Ok(())
    }
}

/// The interrupt numbers of a VM and where they lead.
pub struct Router {
    vm: Arc<dyn KvmEvents>,
    state: Mutex<State>,
}

struct State {
    lines: IdAllocator,
    messages: IdAllocator,
    routes: BTreeMap<u32, kvm_irq_routing_entry>,
}

impl Router {
    pub fn new(vm: Arc<dyn KvmEvents>) -> Result<Self> {
        let ids = |from, to| {
            IdAllocator::new(from, to).map_err(|error| Error::Control(error.to_string()))
        };
        Ok(Self {
            vm,
            state: Mutex::new(State {
                lines: ids(FIRST_FREE_LINE, LINES - 1)?,
                messages: ids(LINES, MAX_ROUTES)?,
                routes: BTreeMap::new(),
            }),
        })
    }

    /// A line of the IO-APIC: `number`, or any free one.
    pub fn line(self: &Arc<Self>, number: Option<u32>) -> Result<Line> {
        let number = match number {
            Some(number) => number,
            None => allocate(&mut lock(&self.state).lines)?,
        };
        self.bind(number)
    }

    /// A message-signalled interrupt. It leads nowhere until [`Router::route`].
    pub fn message(self: &Arc<Self>) -> Result<Line> {
        let number = allocate(&mut lock(&self.state).messages)?;
        self.bind(number)
    }

    fn bind(self: &Arc<Self>, number: u32) -> Result<Line> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("no eventfd")?;
        self.vm.bind_interrupt(&event, number).context("no irqfd")?;
        Ok(Line {
            number,
            event,
            router: self.clone(),
        })
    }

    /// Sends a message's interrupt to where the guest wants it.
    pub fn route(&self, line: &Line, address: u64, data: u32) -> Result<()> {
        let msi = kvm_irq_routing_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        let entry = kvm_irq_routing_entry {
            gsi: line.number,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
            ..Default::default()
        };
        let mut state = lock(&self.state);
        state.routes.insert(line.number, entry);
        let entries: Vec<_> = chip_routes()
            .chain(state.routes.values().copied())
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::Control("too many interrupts".to_owned()))?;
        self.vm.route(&table).context("interrupt routing")
    }
}

fn allocate(ids: &mut IdAllocator) -> Result<u32> {
    ids.allocate_id()
        .map_err(|_| Error::Control("no interrupt left for another device".to_owned()))
}

/// A routing table replaces the kernel's own, so the lines must be in it again.
fn chip_routes() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    };
    let pic = (0..2 * PIC_LINES).map(move |line| match line {
        0..PIC_LINES => entry(line, KVM_IRQCHIP_PIC_MASTER, line),
        _ => entry(line, KVM_IRQCHIP_PIC_SLAVE, line - PIC_LINES),
    });
    pic.chain((0..LINES).map(move |line| entry(line, KVM_IRQCHIP_IOAPIC, line)))
}
