// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vdpa_bus::management::DeviceName;
use vhost_user_blk::socket::{SocketAddress, group_id};
use virtio_blk_disks::StackArg;

use crate::disk_tools::{check, create, map};
use crate::layers::{Address, LayerArgs, ctl, layers_help, top};
use crate::source::{KINDS, Source};

/// The part of `--help` about disks. Lines of at most 78 columns: longer ones are wrapped on a terminal of 80, and
/// can't be pasted any more.
fn disk_help() -> String {
    format!(
        "\
A DISK names its format, always:
{}
  toml:FILE               a file that says all of it, with layers
SIZE takes K, M, G, T (binary). A comma in PATH is written twice.",
        KINDS.manual()
    )
}

fn help_on_disks(examples: &str) -> String {
    format!("{examples}\n\n{}", disk_help())
}

fn help_on_layers(examples: &str) -> String {
    format!("{}\n\n{}", help_on_disks(examples), layers_help())
}

const INFO_HELP: &str = "\
Examples:
  vblk disk info raw:disk.img
  vblk disk info --json qcow2:disk.qcow2
  vblk disk info toml:disk.toml";

const FEATURES_HELP: &str = "\
Examples:
  vblk features
  vblk features --json --disk raw:disk.img";

const VHOST_USER_HELP: &str = "\
Examples:
  vblk serve vhost-user --disk raw:disk.img --socket /tmp/vblk.sock
  vblk serve vhost-user --disk raw:disk.img,direct=on --queues 4 \\
    --socket /tmp/vblk.sock --control /tmp/vblk.ctl --metrics localhost:9477";

const VDUSE_HELP: &str = "\
Examples:
  An image as /dev/vdX of this host:
    modprobe -a vduse virtio_vdpa virtio_blk
    vblk serve vduse --disk raw:disk.img --name disk0 --attach virtio
  As /dev/vhost-vdpa-N for a virtual machine:
    modprobe -a vduse vhost_vdpa
    vblk serve vduse --disk raw:disk.img --name disk0 --attach vhost
  Several disks in one process, each with its options; those in front of the
  first --disk are for all:
    vblk serve vduse --attach virtio --disk raw:a.img --name a \\
      --disk raw:b.img --name b --read-only
  By hand, so that the disk outlives a restart of vblk:
    vblk serve vduse --disk raw:disk.img --name disk0 & vblk vdpa add disk0
    vblk vdpa del disk0; kill %1";

const NBD_HELP: &str = "\
Examples:
  To programs of this host:
    vblk serve nbd --disk raw:disk.img --socket /tmp/nbd.sock
    nbdinfo --map nbd+unix:///?socket=/tmp/nbd.sock
    nbdcopy nbd+unix:///?socket=/tmp/nbd.sock copy.img
  Several disks on one socket (what is in front of the first --disk is for
  all); then nbd+unix:///a?socket=/tmp/nbd.sock is the first of them:
    vblk serve nbd --socket /tmp/nbd.sock \\
      --disk raw:a.img --export a --disk qcow2:b.qcow2 --export b --read-only
  What changed since a bitmap began, as the context qemu:dirty-bitmap:backup:
    vblk serve nbd --disk raw:disk.img,dirty=backup --socket /tmp/nbd.sock
  To other machines that have a certificate (named as for nbdkit and QEMU):
    vblk serve nbd --disk raw:disk.img --listen 127.0.0.1:10809 \\
      --tls /etc/pki/vblk --tls-verify-peer
  To another machine, over a network that nobody else can reach:
    vblk serve nbd --disk raw:disk.img --listen 127.0.0.1:10809 \\
      --trusted-network";

const ROOT_EXAMPLES: &str = "\
Examples:
  Serve an image to QEMU:
    vblk serve vhost-user --disk raw:disk.img --socket /tmp/vblk.sock
    qemu-system-x86_64 -M q35,memory-backend=mem -m 1G \\
      -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -chardev socket,id=c,path=/tmp/vblk.sock,reconnect-ms=1000 \\
      -device vhost-user-blk-pci,chardev=c
  Serve an image to this host's kernel, as /dev/vdX:
    vblk serve vduse --disk raw:disk.img --name disk0 --attach virtio
  Several (options in front of the first --disk are for all):
    vblk serve vhost-user --poll 0 --disk raw:a.img --socket /tmp/a \\
      --disk raw:b.img --socket /tmp/b --read-only
  Limit it, and watch and change that while it is in use:
    vblk serve vhost-user --disk raw:disk.img,throttle=iops:2000,meter \\
      --socket /tmp/vblk.sock --control /tmp/vblk.ctl
    vblk top /tmp/vblk.ctl
    vblk ctl /tmp/vblk.ctl stats
  Make an image, and look at it as a guest would see it:
    vblk disk create qcow2:disk.qcow2,size=20G
    vblk disk info qcow2:disk.qcow2

Exit status:
  0      done; a server was stopped and has ended in order
  1      failed; standard error says why, as its last line. A server ends with
         it, too, if a disk did not finish within --stop-timeout after SIGTERM
  2      the command line can't be understood; of `disk check` more: see there
  128+N  ended by signal N: a server by the second SIGTERM or SIGINT, a
         command whose output nobody reads any more by SIGPIPE

With --json results are objects on standard output, one a line. Standard error
has one object a line, too:
  {\"event\":\"error\",\"kind\":K,\"message\":M,\"errno\":N,\"status\":S}
         why the program ends, as the last line; K is \"failed\", \"usage\" or
         \"unsupported\" (of `disk check`), N
         the system's error number or null, S the exit status
  {\"event\":\"log\",\"level\":L,\"message\":M}
         L is \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";

/// Serve disk images to virtual machines.
#[derive(Debug, Parser)]
#[command(name = "vblk", version, after_help = ROOT_EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Print JSON instead of text: one object a line, errors and the log as well.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error (repeat for more; or set VBLK_LOG).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a disk until SIGTERM or SIGINT.
    #[command(subcommand)]
    Serve(ServeCommand),
    /// Make, examine, check and map disks.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// List, add, bind and delete the kernel's vDPA devices.
    #[command(subcommand, after_help = crate::vdpa::HELP)]
    Vdpa(crate::vdpa::VdpaCommand),
    /// Control a running server: statistics, layers, size, changed blocks.
    #[command(after_help = ctl::help())]
    Ctl(ctl::CtlArgs),
    /// Show what running servers do, as a live table.
    #[command(after_help = top::HELP)]
    Top(top::TopArgs),
    /// List what this build and this host offer.
    #[command(after_help = help_on_disks(FEATURES_HELP))]
    Features(FeaturesArgs),
}

/// How to serve.
#[derive(Debug, Subcommand)]
pub enum ServeCommand {
    /// To a VMM, over a vhost-user socket.
    #[command(after_help = help_on_layers(VHOST_USER_HELP))]
    VhostUser(VhostUserArgs),
    /// To the kernel, as a VDUSE device: /dev/vdX on this host, or a vhost-vdpa device for VMs.
    #[command(after_help = help_on_layers(VDUSE_HELP))]
    Vduse(VduseArgs),
    /// To programs and other machines, as a network block device (NBD): nbdcopy, qemu-img, backup tools.
    #[command(after_help = help_on_layers(NBD_HELP))]
    Nbd(NbdArgs),
}

impl ServeCommand {
    /// What the disk is called in `ctl`, `top` and metrics: its socket or its device.
    pub fn name(&self) -> String {
        match self {
            Self::VhostUser(args) => args.socket.to_string(),
            Self::Vduse(args) => args.name.to_string(),
            Self::Nbd(args) => args.name(),
        }
    }

    /// What is served.
    pub const fn disk(&self) -> &ServeArgs {
        match self {
            Self::VhostUser(args) => &args.serve,
            Self::Vduse(args) => &args.serve,
            Self::Nbd(args) => &args.serve,
        }
    }
}

/// What every way to serve has.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The disk to serve, perhaps with layers; see below.
    #[arg(long, value_name = "DISK[,LAYER…]", value_parser = crate::disk_file::parse)]
    pub disk: StackArg<Source>,
    /// Let drivers and clients only read.
    #[arg(long)]
    pub read_only: bool,
    /// What shows and changes layers.
    #[command(flatten)]
    pub layers: LayerArgs,
}

/// What every way to serve a driver has.
#[derive(Debug, Args)]
pub struct DriverArgs {
    /// Serial number that the driver sees, at most 20 bytes.
    #[arg(long, value_name = "S", default_value = "")]
    pub serial: String,
    /// Look for new requests for this many microseconds after the last, before sleeping; 0: sleep at once.
    #[arg(long, value_name = "µs", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub poll: u64,
}

impl DriverArgs {
    /// The polling time.
    pub fn poll(&self) -> Duration {
        Duration::from_micros(self.poll)
    }
}

/// Options of `serve vhost-user`.
#[derive(Debug, Args)]
pub struct VhostUserArgs {
    /// What is served.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// To a driver.
    #[command(flatten)]
    pub driver: DriverArgs,
    /// Unix socket to listen on, replaced if its server is dead; or fd:N, a descriptor that was passed in and
    /// listens already.
    #[arg(long, value_name = "PATH")]
    pub socket: SocketAddress,
    /// Permissions of the socket, as three octal digits: connecting takes the right to write [default: what the
    /// umask leaves; with --socket-group 660].
    #[arg(long, value_name = "MODE", value_parser = socket_mode)]
    pub socket_mode: Option<u32>,
    /// Group of the socket, by name or number.
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    pub socket_group: Option<u32>,
    /// Queues to offer [default: one per CPU of this host].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(vhost_user_blk::MAX_QUEUES)))]
    pub queues: Option<u16>,
    /// Largest size of a queue, in requests: a power of two.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub queue_size: u16,
}

/// Options of `serve nbd`.
#[derive(Debug, Args)]
pub struct NbdArgs {
    /// What is served.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// The export's name, by which clients ask for it [default: the empty name; clients that ask for none get the
    /// first].
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// What people may read of the export.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Unix socket to listen on, replaced if its server is dead; or fd:N, a descriptor that was passed in and
    /// listens already. Several disks may share it: write it in front of the first --disk.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "listen",
        conflicts_with = "listen"
    )]
    pub socket: Option<SocketAddress>,
    /// Permissions of the socket, as three octal digits: connecting takes the right to write [default: what the
    /// umask leaves; with --socket-group 660].
    #[arg(long, value_name = "MODE", value_parser = socket_mode)]
    pub socket_mode: Option<u32>,
    /// Group of the socket, by name or number.
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    pub socket_group: Option<u32>,
    /// TCP port to listen on: HOST:PORT, or :PORT for all addresses. It takes --tls or --trusted-network, too.
    #[arg(long, value_name = "ADDR", requires = "is_safe")]
    pub listen: Option<Address>,
    /// Encrypt all connections, with the server-cert.pem and server-key.pem of this directory.
    #[arg(long, value_name = "DIR", group = "is_safe")]
    pub tls: Option<PathBuf>,
    /// Serve only clients with a certificate that was signed by one in the ca-cert.pem of --tls.
    #[arg(long, requires = "tls")]
    pub tls_verify_peer: bool,
    /// Vouch that only those can reach the network of --listen who may use the disk: nothing is encrypted.
    #[arg(long, requires = "listen", group = "is_safe")]
    pub trusted_network: bool,
    /// Connections at a time, of all disks of the socket; more are closed at once.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: u16,
}

impl NbdArgs {
    /// Where clients connect.
    pub fn place(&self) -> String {
        match (&self.socket, &self.listen) {
            (Some(socket), _) => socket.to_string(),
            (None, Some(address)) => address.to_string(),
            // The command line has one of them.
            (None, None) => String::new(),
        }
    }

    /// What the disk is called: the export's name, or where it is if it has none.
    pub fn name(&self) -> String {
        match self.export.as_str() {
            "" => self.place(),
            name => name.to_owned(),
        }
    }
}

/// Permission bits in octal digits.
fn socket_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "give three octal digits, as 660".to_owned())
}

/// A driver of the vDPA bus.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AttachArg {
    /// virtio_vdpa
    Virtio,
    /// vhost_vdpa
    Vhost,
}

/// Options of `serve vduse`.
#[derive(Debug, Args)]
pub struct VduseArgs {
    /// What is served.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// To a driver.
    #[command(flatten)]
    pub driver: DriverArgs,
    /// The device's name: /dev/vduse/NAME.
    #[arg(long, value_name = "NAME")]
    pub name: DeviceName,
    /// Add the device to the vDPA bus for this driver, and take it away at the end: virtio for /dev/vdX of this
    /// host, vhost for /dev/vhost-vdpa-N.
    #[arg(long, value_name = "DRIVER")]
    pub attach: Option<AttachArg>,
    /// Queues to offer [default: one per CPU of this host].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub queues: Option<u16>,
    /// Largest size of a queue, in requests: a power of two.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue_size: u16,
    /// Bytes of the kernel's bounce buffer: 1 MiB to 1 GiB (Linux 6.12) [default: the kernel's, 64 MiB].
    #[arg(long, value_name = "BYTES")]
    pub bounce_size: Option<u64>,
    /// Seconds until the kernel gives up a device that does not answer; 0: never [default: the kernel's, 30].
    #[arg(long, value_name = "S")]
    pub msg_timeout: Option<u32>,
    /// Let queues' threads run on any CPU, in place of those on which the driver takes the queue's interrupts.
    #[arg(long)]
    pub no_pin: bool,
    /// Where to keep what a restarted server needs to continue without loss.
    #[arg(long, value_name = "DIR", default_value = "/run/vblk")]
    pub state_dir: PathBuf,
}

/// What to do with a disk.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Show capacity, block sizes and abilities as they were probed.
    #[command(after_help = help_on_disks(INFO_HELP))]
    Info(InfoArgs),
    /// Make an image.
    #[command(after_help = create::HELP)]
    Create(create::CreateArgs),
    /// Look whether a qcow2 image is sound, and repair its refcounts.
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Show what is where: data, zeroes, nothing; in which file, and where in it.
    #[command(after_help = map::HELP)]
    Map(map::MapArgs),
}

/// Options of `disk info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The disk; see below. It is neither locked nor changed, and may be in use.
    #[arg(value_name = "DISK", value_parser = crate::disk_file::parse)]
    pub disk: StackArg<Source>,
}

/// Options of `features`.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    /// Show what a device over this disk offers, too. It is neither locked nor changed.
    #[arg(long, value_name = "DISK", value_parser = crate::disk_file::parse)]
    pub disk: Option<StackArg<Source>>,
}

#[cfg(test)]
mod tests;
