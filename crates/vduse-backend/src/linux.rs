// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel itself.

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::thread::CpuSet;
use virtio_blk_core::memory::Permissions;
use vmm_sys_util::eventfd::EventFd;

use crate::affinity::parse_mask;
use crate::kernel::{
    Attribute, Control, DeviceFile, Events, Kernel, NewDevice, Region, RegionInfo, VqInfo,
};
use crate::message::{RawMessage, RawResponse};
use crate::uapi::{self, IotlbEntry, IovaInfo, RawVqInfo, VqConfig, VqEventFd};

/// VDUSE of the running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Linux {
    fn attribute_path(name: &str, attribute: Attribute) -> PathBuf {
        PathBuf::from("/sys/class/vduse")
            .join(name)
            .join(attribute.name())
    }
}

fn open(path: PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

impl Kernel for Linux {
    fn control(&self) -> io::Result<Box<dyn Control>> {
        open("/dev/vduse/control".into())
            .map(|file| Box::new(ControlFile(file)) as Box<dyn Control>)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DeviceFile>> {
        let file = open(PathBuf::from("/dev/vduse").join(name))?;
        Ok(Arc::new(LinuxDevice(file)))
    }

    fn attribute(&self, name: &str, attribute: Attribute) -> io::Result<u64> {
        let text = fs::read_to_string(Self::attribute_path(name, attribute))?;
        text.trim()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn set_attribute(&self, name: &str, attribute: Attribute, value: u64) -> io::Result<()> {
        fs::write(Self::attribute_path(name, attribute), value.to_string())
    }

    fn vq_cpus(&self, name: &str, index: u16) -> io::Result<CpuSet> {
        let queue = format!("/sys/class/vduse/{name}/vq{index}/irq_cb_affinity");
        parse_mask(&fs::read_to_string(queue)?)
    }

    fn boot_id(&self) -> io::Result<String> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(id.trim().to_owned())
    }
}

/// Calls an ioctl.
///
/// # Safety
/// `argument` is what the kernel expects of `request`: a pointer to a structure of its, or a number.
unsafe fn ioctl(file: &File, request: u32, argument: *mut c_void) -> io::Result<i32> {
    // SAFETY: the caller's promise; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Calls an ioctl whose argument points to a `T`, of the size that is part of the number.
fn with<T>(file: &File, request: u32, argument: &mut T) -> io::Result<i32> {
    debug_assert_eq!(request as usize >> 16 & 0x3fff, size_of::<T>());
    // SAFETY: every structure here has the size and layout of the kernel's, which the tests check, and is
    // readable and writable.
    unsafe { ioctl(file, request, std::ptr::from_mut(argument).cast()) }
}

struct ControlFile(File);

impl Control for ControlFile {
    fn api_version(&self) -> io::Result<u64> {
        let mut version = 0u64;
        with(&self.0, uapi::GET_API_VERSION, &mut version)?;
        Ok(version)
    }

    fn set_api_version(&self, mut version: u64) -> io::Result<()> {
        with(&self.0, uapi::SET_API_VERSION, &mut version).map(drop)
    }

    fn features(&self) -> io::Result<u64> {
        let mut features = 0u64;
        with(&self.0, uapi::GET_FEATURES, &mut features)?;
        Ok(features)
    }

    fn set_features(&self, mut features: u64) -> io::Result<()> {
        with(&self.0, uapi::SET_FEATURES, &mut features).map(drop)
    }

    fn create(&self, device: &NewDevice) -> io::Result<()> {
        let mut bytes = create_argument(device)?;
        // SAFETY: a structure as large as the number says, and behind it as many bytes of the configuration
        // space as it says itself.
        unsafe { ioctl(&self.0, uapi::CREATE_DEV, bytes.as_mut_ptr().cast()) }.map(drop)
    }

    fn destroy(&self, name: &str) -> io::Result<()> {
        let mut bytes = name_argument(name)?;
        with(&self.0, uapi::DESTROY_DEV, &mut bytes).map(drop)
    }
}

fn name_argument(name: &str) -> io::Result<[u8; uapi::NAME_SIZE]> {
    let mut bytes = [0; uapi::NAME_SIZE];
    // The last byte stays 0.
    if name.len() >= bytes.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(bytes)
}

/// `struct vduse_dev_config`: name, u32 vendor_id@256, u32 device_id@260, u64 features@264, u32 vq_num@272,
/// u32 vq_align@276, u32 ngroups@280, u32 nas@284, reserved, u32 config_size@332, config@336.
fn create_argument(device: &NewDevice) -> io::Result<Vec<u8>> {
    let mut bytes = name_argument(&device.name)?.to_vec();
    let page = rustix::param::page_size() as u32;
    // One group in one address space, where the kernel has such.
    let groups = u32::from(device.api_version >= 1);
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(uapi::ID_BLOCK.to_ne_bytes());
    bytes.extend(device.features.to_ne_bytes());
    for field in [u32::from(device.queues), page, groups, groups] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.resize(uapi::CONFIG_HEADER - 4, 0);
    bytes.extend((device.config.len() as u32).to_ne_bytes());
    bytes.extend(&device.config);
    Ok(bytes)
}

/// Whether `file` is the one that `vduse_domain_create` makes for virtio-vdpa: an anonymous file with a name of its
/// own. Guest memory is no such file, be it of a file system, a device's (`/dev/dax`) or also anonymous.
fn is_domain(file: &OwnedFd) -> bool {
    // Anonymous files have no type, whatever the kernel's version.
    let anonymous = rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown);
    if !anonymous {
        return false;
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Without /proc the type must do: hardly any VMM has guest memory in an anonymous file.
    fs::read_link(link).map_or(true, |name| is_domain_name(&name))
}

/// `[vduse-domain]` is the name that `vduse_domain_create` gives.
fn is_domain_name(link: &Path) -> bool {
    link.to_string_lossy().starts_with("anon_inode:[vduse")
}

struct LinuxDevice(File);

/// Waits as [`DeviceFile::wait`] says, on a descriptor that is readable when there is a message.
pub(crate) fn wait_on(
    file: BorrowedFd<'_>,
    also: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> io::Result<Events> {
    let mut fds = vec![PollFd::from_borrowed_fd(file, PollFlags::IN)];
    fds.extend(
        also.iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
    );
    let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Events::default()),
        Err(error) => return Err(error.into()),
    }
    let found = fds.first().map_or(PollFlags::empty(), PollFd::revents);
    Ok(Events {
        message: found.contains(PollFlags::IN),
        broken: found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
    })
}

impl DeviceFile for LinuxDevice {
    fn wait(&self, also: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Events> {
        wait_on(self.0.as_fd(), also, timeout)
    }

    fn read(&self) -> io::Result<Option<RawMessage>> {
        let mut message = [0; uapi::MESSAGE_SIZE];
        match (&self.0).read(&mut message) {
            Ok(uapi::MESSAGE_SIZE) => Ok(Some(message)),
            Ok(got) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {got} bytes"),
            )),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn respond(&self, response: &RawResponse) -> io::Result<()> {
        (&self.0).write(response).map(drop)
    }

    fn region(&self, first: u64) -> io::Result<Option<Region>> {
        let mut entry = IotlbEntry {
            start: first,
            last: u64::MAX,
            ..IotlbEntry::default()
        };
        let fd = match with(&self.0, uapi::IOTLB_GET_FD, &mut entry) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        // SAFETY: a new descriptor, which the kernel gave to this process.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // The kernel does not set it.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        let permissions = match entry.perm & (uapi::ACCESS_READ | uapi::ACCESS_WRITE) {
            0 => Permissions::No,
            uapi::ACCESS_READ => Permissions::Read,
            uapi::ACCESS_WRITE => Permissions::Write,
            _ => Permissions::ReadWrite,
        };
        Ok(Some(Region {
            domain: is_domain(&file),
            file,
            offset: entry.offset,
            first: entry.start,
            last: entry.last,
            permissions,
        }))
    }

    fn region_info(&self, first: u64) -> io::Result<Option<RegionInfo>> {
        let mut info = IovaInfo {
            start: first,
            last: u64::MAX,
            ..IovaInfo::default()
        };
        match with(&self.0, uapi::IOTLB_GET_INFO, &mut info) {
            Ok(_) => Ok(Some(RegionInfo {
                first: info.start,
                last: info.last,
                bounce: info.capability & uapi::IOVA_CAP_UMEM != 0,
            })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn driver_features(&self) -> io::Result<u64> {
        let mut features = 0u64;
        with(&self.0, uapi::DEV_GET_FEATURES, &mut features)?;
        Ok(features)
    }

    fn set_config(&self, config: &[u8]) -> io::Result<()> {
        let mut bytes = 0u32.to_ne_bytes().to_vec();
        bytes.extend((config.len() as u32).to_ne_bytes());
        bytes.extend(config);
        // SAFETY: offset and length, and behind them as many bytes.
        unsafe { ioctl(&self.0, uapi::DEV_SET_CONFIG, bytes.as_mut_ptr().cast()) }.map(drop)
    }

    fn inject_config_irq(&self) -> io::Result<()> {
        // SAFETY: takes no argument.
        unsafe { ioctl(&self.0, uapi::DEV_INJECT_CONFIG_IRQ, std::ptr::null_mut()) }.map(drop)
    }

    fn set_up_vq(&self, index: u16, max_size: u16) -> io::Result<()> {
        let mut config = VqConfig {
            index: index.into(),
            max_size,
            ..VqConfig::default()
        };
        with(&self.0, uapi::VQ_SETUP, &mut config).map(drop)
    }

    fn vq_info(&self, index: u16) -> io::Result<VqInfo> {
        let mut info = RawVqInfo {
            index: index.into(),
            ..RawVqInfo::default()
        };
        with(&self.0, uapi::VQ_GET_INFO, &mut info)?;
        Ok(VqInfo {
            num: info.num,
            descriptor: info.descriptor,
            driver: info.driver,
            device: info.device,
            avail_index: info.state[0],
            ready: info.ready != 0,
        })
    }

    fn set_kick(&self, index: u16, kick: Option<&EventFd>) -> io::Result<()> {
        let mut argument = VqEventFd {
            index: index.into(),
            fd: kick.map_or(-1, AsRawFd::as_raw_fd),
        };
        with(&self.0, uapi::VQ_SETUP_KICKFD, &mut argument).map(drop)
    }

    fn inject_irq(&self, index: u16) -> io::Result<()> {
        with(&self.0, uapi::VQ_INJECT_IRQ, &mut u32::from(index)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_described_as_the_kernel_expects() {
        let device = NewDevice {
            name: "disk0".to_owned(),
            features: 0x1122_3344_5566_7788,
            queues: 4,
            api_version: 1,
            config: vec![7; 96],
        };
        let bytes = create_argument(&device).unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 336 + 96);
        assert_eq!(&bytes[..6], b"disk0\0");
        assert_eq!((word(256), word(260)), (0, 2));
        assert_eq!(bytes[264..272], device.features.to_ne_bytes());
        assert_eq!((word(272), word(280), word(284)), (4, 1, 1));
        assert!(bytes[288..332].iter().all(|byte| *byte == 0));
        assert_eq!((word(332), bytes[336]), (96, 7));
        let old = NewDevice {
            api_version: 0,
            ..device
        };
        let bytes = create_argument(&old).unwrap();
        assert!(bytes[280..332].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn files_of_guest_memory_are_not_virtio_vdpas() {
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        for file in [
            tempfile::tempfile().unwrap(),
            tempfile::tempfile_in("/dev/shm").unwrap(),
            // A device, as /dev/dax is one.
            open("/dev/zero"),
        ] {
            assert!(!is_domain(&file.into()));
        }
        // Anonymous, with another name.
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        assert!(!is_domain(&rustix::event::eventfd(0, flags).unwrap()));
        assert!(is_domain_name(Path::new("anon_inode:[vduse-domain]")));
        assert!(!is_domain_name(Path::new("anon_inode:[eventfd]")));
    }

    #[test]
    fn a_name_keeps_its_terminator() {
        assert!(name_argument(&"x".repeat(255)).is_ok());
        assert!(name_argument(&"x".repeat(256)).is_err());
    }
}
