// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod maps;

use std::sync::atomic::AtomicUsize;

use vdpa_bus::{Callback, VdpaDevice, VqAddress, VqState};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};

use super::*;

/// A call as the kernel would get it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Ioctl(u32, Vec<u8>),
    Write(Vec<u8>),
    Mmap(u16),
}

/// Records each call, and returns what it was given.
#[derive(Default)]
struct Fake {
    calls: Arc<Mutex<Vec<Call>>>,
    backend_features: u64,
    /// `(request, errno)`: that one fails.
    fails: Vec<(u32, i32)>,
    config_reads: AtomicUsize,
    /// Reads of the configuration space that differ from each other.
    unstable: usize,
    /// Number of the IOTLB message that fails.
    bad_message: Option<usize>,
    messages: AtomicUsize,
    /// Why a doorbell can't be mapped; the kernel's ENOTSUPP if 0.
    doorbell: i32,
}

impl VhostFd for Fake {
    fn ioctl(&self, request: u32, arg: &mut [u8]) -> io::Result<i32> {
        lock(&self.calls).push(Call::Ioctl(request, arg.to_vec()));
        if let Some((_, errno)) = self.fails.iter().find(|(failing, _)| *failing == request) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        let mut answer = |bytes: &[u8]| arg.copy_from_slice(bytes);
        match request {
            0x8008_af00 => answer(&0x1234_5678_9abc_def0u64.to_ne_bytes()),
            0x8008_af26 => answer(&self.backend_features.to_ne_bytes()),
            0x8004_af70 => answer(&2u32.to_ne_bytes()),
            0x8001_af71 => answer(&[15]),
            0x8002_af76 => answer(&256u16.to_ne_bytes()),
            0x8010_af78 => {
                let range = [0x1000u64.to_ne_bytes(), 0xffff_ffffu64.to_ne_bytes()];
                answer(range.as_flattened());
            }
            0x8004_af79 => answer(&96u32.to_ne_bytes()),
            0x8004_af80 => answer(&3u32.to_ne_bytes()),
            0x8004_af81 | 0x8004_af7a => answer(&2u32.to_ne_bytes()),
            // Pairs answer their index plus 40.
            0xc008_af12 | 0xc008_af7b | 0xc008_af7f | 0xc008_af82 => {
                let index = arg[0];
                arg[4] = index + 40;
            }
            0x8008_af73 => {
                let reads = self.config_reads.fetch_add(1, Ordering::Relaxed);
                arg[8..].fill(reads.min(self.unstable) as u8);
            }
            _ => {}
        }
        Ok(0)
    }

    fn send(&self, message: &[u8; abi::MESSAGE_SIZE]) -> io::Result<()> {
        lock(&self.calls).push(Call::Write(message.to_vec()));
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        if self.bad_message == Some(number) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(())
    }

    fn doorbell(&self, vq: u16) -> io::Result<Doorbell> {
        lock(&self.calls).push(Call::Mmap(vq));
        let errno = if self.doorbell == 0 {
            524
        } else {
            self.doorbell
        };
        Err(io::Error::from_raw_os_error(errno))
    }
}

const ALL: u64 = 0x1fe;

fn open(fake: Fake) -> (VhostVdpa, Arc<Mutex<Vec<Call>>>) {
    let calls = fake.calls.clone();
    let device = VhostVdpa::over(Box::new(fake), -1, "fake".into()).unwrap();
    lock(&calls).clear();
    (device, calls)
}

fn with(backend_features: u64) -> (VhostVdpa, Arc<Mutex<Vec<Call>>>) {
    open(Fake {
        backend_features,
        ..Fake::default()
    })
}

fn taken(calls: &Mutex<Vec<Call>>) -> Vec<Call> {
    std::mem::take(&mut *lock(calls))
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn ints(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

/// The numbers of kernel.md 3.1, written down and not computed.
#[test]
fn opening_asks_for_what_never_changes() {
    let fake = Fake {
        backend_features: 0x8000_0000_0000_01ff,
        ..Fake::default()
    };
    let calls = fake.calls.clone();
    let device = VhostVdpa::over(Box::new(fake), -1, "fake".into()).unwrap();
    let ioctl = Call::Ioctl;
    assert_eq!(
        taken(&calls),
        [
            ioctl(0xaf01, vec![]),
            ioctl(0x8008_af26, vec![0; 8]),
            ioctl(0x4008_af25, longs(&[ALL])),
            ioctl(0x8004_af80, vec![0; 4]),
            ioctl(0x8004_af79, vec![0; 4]),
            ioctl(0x8004_af81, vec![0; 4]),
            ioctl(0x8004_af7a, vec![0; 4]),
            ioctl(0x8010_af78, vec![0; 16]),
            ioctl(0x8002_af76, vec![0; 2]),
            ioctl(0x8004_af70, vec![0; 4]),
        ]
    );
    assert_eq!(device.nvqs(), 3);
    assert_eq!((device.ngroups(), device.nas()), (2, 2));
    assert_eq!(device.get_config_size(), 96);
    assert_eq!(device.get_vq_num_max(), 256);
    assert_eq!(device.get_iova_range(), 0x1000..=0xffff_ffff);
    assert_eq!(device.get_device_id(), 2);
    assert_eq!(device.get_backend_features(), ALL);
}

#[test]
fn a_feature_is_not_taken_without_what_it_needs() {
    let (device, _) = with(0x1fe & !backend_feature::IOTLB_ASID);
    assert_eq!(
        device.get_backend_features() & backend_feature::DESC_ASID,
        0
    );
}

#[test]
fn every_operation_is_its_request() {
    let (device, calls) = with(ALL);
    let address = VqAddress {
        desc: 0x1_0000_0010,
        driver: 0x2_0000_0002,
        device: 0x3_0000_0004,
    };
    let split = VqState::Split {
        avail_index: 0xfffe,
    };
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let fd = event.as_raw_fd() as u32;
    let event = Arc::new(event);
    let trigger = || Some(Callback::Trigger(event.clone()));
    type Run<'a> = Box<dyn Fn(&VhostVdpa) + 'a>;
    let table: Vec<(Run<'_>, u32, Vec<u8>)> = vec![
        (
            Box::new(|d| assert_eq!(d.get_device_features(), 0x1234_5678_9abc_def0)),
            0x8008_af00,
            vec![0; 8],
        ),
        (
            Box::new(|d| d.set_driver_features(0x3_0000_0001).unwrap()),
            0x4008_af00,
            longs(&[0x3_0000_0001]),
        ),
        (
            Box::new(|d| d.set_vq_num(2, 128).unwrap()),
            0x4008_af10,
            ints(&[2, 128]),
        ),
        (
            Box::new(|d| d.set_vq_address(1, address).unwrap()),
            0x4028_af11,
            bytes(&[
                &ints(&[1, 0]),
                &longs(&[address.desc, address.device, address.driver, 0]),
            ]),
        ),
        (
            Box::new(|d| d.set_vq_state(1, split).unwrap()),
            0x4008_af12,
            ints(&[1, 0xfffe]),
        ),
        (
            Box::new(|d| {
                assert_eq!(
                    d.get_vq_state(1).unwrap(),
                    VqState::Split { avail_index: 41 }
                )
            }),
            0xc008_af12,
            ints(&[1, 0]),
        ),
        (
            Box::new(|d| d.set_vq_kick(1, Some(event.clone())).unwrap()),
            0x4008_af20,
            ints(&[1, fd]),
        ),
        (
            Box::new(|d| d.set_vq_kick(1, None).unwrap()),
            0x4008_af20,
            ints(&[1, u32::MAX]),
        ),
        (
            Box::new(|d| d.set_vq_cb(2, trigger()).unwrap()),
            0x4008_af21,
            ints(&[2, fd]),
        ),
        (
            Box::new(|d| d.set_vq_cb(2, None).unwrap()),
            0x4008_af21,
            ints(&[2, u32::MAX]),
        ),
        (
            Box::new(|d| d.set_vq_err(0, Some(&event)).unwrap()),
            0x4008_af22,
            ints(&[0, fd]),
        ),
        (
            Box::new(|d| d.set_vq_err(0, None).unwrap()),
            0x4008_af22,
            ints(&[0, u32::MAX]),
        ),
        (
            Box::new(|d| assert_eq!(d.get_status(), 15)),
            0x8001_af71,
            vec![0],
        ),
        (Box::new(|d| d.set_status(7).unwrap()), 0x4001_af72, vec![7]),
        (
            Box::new(|d| d.set_config(32, &[1]).unwrap()),
            0x4008_af74,
            bytes(&[&ints(&[32, 1]), &[1]]),
        ),
        (
            Box::new(|d| d.set_vq_ready(0, false).unwrap()),
            0x4008_af75,
            ints(&[0, 0]),
        ),
        (
            Box::new(|d| d.set_config_cb(trigger()).unwrap()),
            0x4004_af77,
            ints(&[fd]),
        ),
        (
            Box::new(|d| d.set_config_cb(None).unwrap()),
            0x4004_af77,
            ints(&[u32::MAX]),
        ),
        (
            Box::new(|d| assert_eq!(d.get_vq_group(2).unwrap(), 42)),
            0xc008_af7b,
            ints(&[2, 0]),
        ),
        (
            Box::new(|d| d.set_group_asid(1, 3).unwrap()),
            0x4008_af7c,
            ints(&[1, 3]),
        ),
        (Box::new(|d| d.suspend().unwrap()), 0xaf7d, vec![]),
        (Box::new(|d| d.resume().unwrap()), 0xaf7e, vec![]),
        (
            Box::new(|d| assert_eq!(d.get_vq_desc_group(0).unwrap(), 40)),
            0xc008_af7f,
            ints(&[0, 0]),
        ),
        (
            Box::new(|d| assert_eq!(d.get_vq_size(1).unwrap(), 41)),
            0xc008_af82,
            ints(&[1, 0]),
        ),
    ];
    for (run, request, arg) in table {
        run(&device);
        assert_eq!(taken(&calls), [Call::Ioctl(request, arg)], "{request:#x}");
    }
}

#[test]
fn a_ready_queue_can_be_kicked() {
    let (device, calls) = with(ALL);
    device.set_vq_ready(1, true).unwrap();
    let made = taken(&calls);
    assert!(
        matches!(
            &made[..],
            [Call::Ioctl(0x4008_af20, _), Call::Ioctl(0x4008_af75, _)]
        ),
        "{made:?}"
    );
    device.kick_vq(1);
    let own = lock(&device.vqs[1].kick).clone().unwrap();
    assert_eq!(own.read().unwrap(), 1);
    // Unbound: nothing is written, as the kernel would not see it either.
    device.set_vq_kick(1, None).unwrap();
    device.kick_vq(1);
    assert!(own.read().is_err());
    device.kick_vq(9);
}

#[test]
fn configuration_is_read_until_two_reads_agree() {
    let (device, calls) = open(Fake {
        backend_features: ALL,
        unstable: 3,
        ..Fake::default()
    });
    let mut field = [0; 8];
    device.get_config(0, &mut field).unwrap();
    assert_eq!(field, [3; 8]);
    let reads = taken(&calls);
    assert_eq!(reads.len(), 5);
    assert_eq!(
        reads[0],
        Call::Ioctl(0x8008_af73, bytes(&[&ints(&[0, 8]), &[0; 8]]))
    );

    let (device, _) = open(Fake {
        unstable: usize::MAX,
        ..Fake::default()
    });
    assert_eq!(
        device.get_config(0, &mut field).unwrap_err().errno(),
        libc::EBUSY
    );
    for (offset, len) in [(96, 1), (0, 97), (0, 0), (usize::MAX, 2)] {
        assert!(device.get_config(offset, &mut vec![0; len]).is_err());
        assert!(device.set_config(offset, &vec![0; len]).is_err());
    }
}

#[test]
fn a_reset_clears_callbacks() {
    let (device, calls) = with(ALL);
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    device
        .set_vq_cb(1, Some(Callback::Trigger(event.clone())))
        .unwrap();
    device
        .set_config_cb(Some(Callback::Trigger(event)))
        .unwrap();
    device.set_vq_ready(1, true).unwrap();
    taken(&calls);
    device.set_status(0).unwrap();
    assert_eq!(
        taken(&calls),
        [
            Call::Ioctl(0x4001_af72, vec![0]),
            Call::Ioctl(0x4008_af21, ints(&[1, u32::MAX])),
            Call::Ioctl(0x4004_af77, ints(&[u32::MAX])),
        ]
    );
    assert!(!device.get_vq_ready(1));
}

#[test]
fn packed_rings_have_both_positions() {
    let (device, calls) = with(ALL);
    let packed = VqState::from_vring_base(0x8003_0005, true).unwrap();
    assert!(
        device.set_vq_state(0, packed).is_err(),
        "a split ring was negotiated"
    );
    device.set_driver_features(feature_packed()).unwrap();
    taken(&calls);
    device.set_vq_state(0, packed).unwrap();
    assert_eq!(
        taken(&calls),
        [Call::Ioctl(0x4008_af12, ints(&[0, 0x8003_0005]))]
    );
    assert!(
        device
            .set_vq_state(0, VqState::Split { avail_index: 0 })
            .is_err()
    );
}

fn feature_packed() -> u64 {
    virtio_blk_core::spec::feature::RING_PACKED
}

#[test]
fn errors_say_what_the_kernel_meant() {
    for (errno, expected) in [
        (libc::EOPNOTSUPP, libc::EOPNOTSUPP),
        (libc::ENOTTY, libc::EOPNOTSUPP),
        (libc::EBUSY, libc::EBUSY),
        (libc::ENODEV, libc::ENODEV),
        (libc::EINVAL, libc::EINVAL),
        (libc::EPERM, libc::EPERM),
    ] {
        let (device, _) = open(Fake {
            fails: vec![(0xaf7d, errno)],
            ..Fake::default()
        });
        assert_eq!(device.suspend().unwrap_err().errno(), expected);
    }
    // The kernel's ENOTSUPP; a doorbell within a page; one that there is, and can't be mapped.
    for (errno, expected) in [
        (524, Ok(false)),
        (libc::EINVAL, Ok(false)),
        (libc::ENOMEM, Err(libc::ENOMEM)),
    ] {
        let (device, calls) = open(Fake {
            doorbell: errno,
            ..Fake::default()
        });
        let used = device.use_doorbells();
        assert_eq!(used.map_err(|error| error.errno()), expected);
        assert_eq!(lock(&calls).len(), 1, "it asks on in vain");
    }
    let (device, _) = with(ALL);
    assert_eq!(device.doorbell(0).unwrap_err().errno(), libc::EOPNOTSUPP);
    let call = Some(Callback::call(|| {}));
    assert_eq!(
        device.set_vq_cb(0, call.clone()).unwrap_err().errno(),
        libc::EOPNOTSUPP
    );
    assert_eq!(
        device.set_config_cb(call).unwrap_err().errno(),
        libc::EOPNOTSUPP
    );
    assert_eq!(device.set_vq_num(3, 4).unwrap_err().errno(), libc::EINVAL);
    device.free();
    assert_eq!(device.set_vq_num(0, 4).unwrap_err().errno(), libc::ENODEV);
    assert_eq!(device.get_device_features(), 0);
}

#[test]
fn kernels_without_groups_have_one() {
    let (device, _) = open(Fake {
        fails: vec![(0x8004_af81, libc::ENOTTY), (0x8004_af7a, libc::ENOTTY)],
        ..Fake::default()
    });
    assert_eq!((device.ngroups(), device.nas()), (1, 1));
}

/// A descriptor that is something else says so; nothing is assumed of it.
#[test]
fn another_file_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = VhostVdpa::from_fd(file.into()).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
    let error = VhostVdpa::open("/dev/vhost-vdpa-none").unwrap_err();
    assert!(
        error.to_string().contains("/dev/vhost-vdpa-none"),
        "{error}"
    );
}
