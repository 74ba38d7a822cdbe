//! What the operator asks for: the kernel command line (`-append`), parsed strictly.
//!
//! ```text
//! ip=ADDR/PREFIX      an address of this node; up to three
//! gw=ADDR             the default gateway of its family; one of each
//! disk=flush|writethrough
//!                     what makes a write durable: the disk's FLUSH (default), or the write itself,
//!                     on a disk without a volatile cache
//! slot=NR             serve the volume on the disk, as its voter of this slot
//! listen=PORT         server: listen at this port of every own address, and not at the address
//!                     that the volume gives the voter; for when connections to that are forwarded
//! host=ID             server: the host it runs on, 32 hexadecimal digits. Whoever starts the
//!                     image promises that no other voter of this slot ran under this id when it
//!                     was started; the slot of a server that was killed is then free at once.
//!                     Without it the id is random, and such a slot is never free by itself
//! boot=ID             server: the boot of that host, as long. With it the promise is that no other
//!                     voter of this slot runs in that boot: one that was killed in it is followed
//!                     at once, without a watch
//! alone               server: the promise that no other voter of this slot runs anywhere, because
//!                     it would need the lock that whoever starts the image holds
//! fenced=ID|any       server: an operator's word that the last user of the slot, the incarnation
//!                     of this id, or whoever it was, is gone for good
//! selftest[=NAME]     run the acceptance test, or one planted fault: panic, wx, nx, null, stack,
//!                     divide, double
//! echo=PORT           selftest: serve one TCP echo connection at this port
//! connect=ADDR:PORT   selftest: connect there, send, expect an echo
//! linger=SECONDS      selftest: idle this long before the end
//! ```
//!
//! * A word that is unknown, malformed, doubled or useless is an error: a typo must not start a
//!   server with defaults.
//! * `virtio_mmio.device=...` is appended by QEMU's microvm, and ignored: devices are found by
//!   looking.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use heapless::Vec;
use outrider_core::format::quorum::{BootId, HostId, Incarnation, Slot};
use outrider_core::quorum::{Exclusion, Vouched};

/// Most addresses a node can have.
pub const ADDRESSES_MAX: usize = 3;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixed {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// A fault that the self-test causes on request. The image must die of it, loudly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A panic.
    Panic,
    /// Write to code.
    WriteText,
    /// Execute data.
    ExecuteData,
    /// Read address 0.
    Null,
    /// Recurse until the stack ends.
    Stack,
    /// Divide by zero.
    Divide,
    /// Fault with the stack pointer nowhere.
    DoubleFault,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Serve as the voter of this slot.
    Server(Slot),
    /// Run the acceptance test.
    SelfTest,
    /// Cause this fault.
    Fault(Fault),
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What to do.
    pub mode: Mode,
    /// Own addresses.
    pub addresses: Vec<Prefixed, ADDRESSES_MAX>,
    /// Default gateway of each family.
    pub gateways: Vec<IpAddr, 2>,
    /// The disk needs no flush.
    pub write_through: bool,
    /// Port the server listens at, on every own address.
    pub listen: Option<u16>,
    /// The host.
    pub host: Option<HostId>,
    /// The boot of the host.
    pub boot: Option<BootId>,
    /// Nobody else uses the slot, anywhere.
    pub alone: Option<Exclusion>,
    /// Who is gone for good.
    pub vouched: Option<Vouched>,
    /// Port of the self-test's echo.
    pub echo: Option<u16>,
    /// Peer of the self-test's client.
    pub connect: Option<SocketAddr>,
    /// Seconds the self-test idles.
    pub linger_s: Option<u16>,
}

/// Why a command line is refused; holds the word at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsError<'a> {
    /// No such option.
    Unknown(&'a str),
    /// The value is not what the option takes.
    Malformed(&'a str),
    /// The option was given before, or as often as it may be.
    Doubled(&'a str),
    /// The option has no use in this mode.
    Useless(&'static str),
    /// Nothing says what to do.
    NoMode,
    /// A server that nobody could reach.
    NoAddress,
    /// A gateway of a family without an address.
    GatewayWithoutAddress(IpAddr),
}

impl fmt::Display for OptionsError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionsError::Unknown(word) => write!(f, "unknown option '{word}'"),
            OptionsError::Malformed(word) => write!(f, "malformed option '{word}'"),
            OptionsError::Doubled(word) => write!(f, "option given too often: '{word}'"),
            OptionsError::Useless(name) => {
                write!(f, "option '{name}' makes no sense with what else is given")
            }
            OptionsError::NoMode => write!(f, "nothing to do: give 'slot=NR' or 'selftest'"),
            OptionsError::NoAddress => {
                write!(f, "a server needs an address: give 'ip=ADDR/PREFIX'")
            }
            OptionsError::GatewayWithoutAddress(addr) => {
                write!(f, "gateway {addr} without an ip= of its family")
            }
        }
    }
}

impl Options {
    /// Parses a command line: words separated by blanks.
    pub fn parse(line: &str) -> Result<Options, OptionsError<'_>> {
        let mut options = Options {
            mode: Mode::SelfTest,
            addresses: Vec::new(),
            gateways: Vec::new(),
            write_through: false,
            listen: None,
            host: None,
            boot: None,
            alone: None,
            vouched: None,
            echo: None,
            connect: None,
            linger_s: None,
        };
        let mut durability_given = false;
        let mut mode = None;
        for word in line.split_ascii_whitespace() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let malformed = OptionsError::Malformed(word);
            let doubled = OptionsError::Doubled(word);
            match (name, value) {
                ("ip", Some(value)) => {
                    let addr = parse_prefixed(value).ok_or(malformed)?;
                    options.addresses.push(addr).map_err(|_| doubled)?;
                }
                ("gw", Some(value)) => {
                    let addr: IpAddr = value.parse().map_err(|_| malformed)?;
                    if options.gateways.iter().any(|other| other.is_ipv4() == addr.is_ipv4()) {
                        return Err(doubled);
                    }
                    options.gateways.push(addr).map_err(|_| doubled)?;
                }
                ("disk", Some(value)) => {
                    if core::mem::replace(&mut durability_given, true) {
                        return Err(doubled);
                    }
                    options.write_through = match value {
                        "flush" => false,
                        "writethrough" => true,
                        _ => return Err(malformed),
                    };
                }
                ("slot", Some(value)) => {
                    let slot = value.parse().ok().and_then(Slot::new).ok_or(malformed)?;
                    once(&mut mode, Mode::Server(slot), doubled)?;
                }
                ("listen", Some(value)) => {
                    once(&mut options.listen, parse_port(value).ok_or(malformed)?, doubled)?;
                }
                ("host", Some(value)) => {
                    let host = parse_id(value).map(HostId).ok_or(malformed)?;
                    once(&mut options.host, host, doubled)?;
                }
                ("boot", Some(value)) => {
                    let boot = parse_id(value).map(BootId).ok_or(malformed)?;
                    once(&mut options.boot, boot, doubled)?;
                }
                ("alone", None) => once(&mut options.alone, Exclusion::Volume, doubled)?,
                ("fenced", Some(value)) => {
                    once(&mut options.vouched, parse_fenced(value).ok_or(malformed)?, doubled)?;
                }
                ("selftest", value) => {
                    once(&mut mode, parse_self_test(value).ok_or(malformed)?, doubled)?;
                }
                ("echo", Some(value)) => {
                    once(&mut options.echo, parse_port(value).ok_or(malformed)?, doubled)?;
                }
                ("connect", Some(value)) => {
                    let peer = value.parse().map_err(|_| malformed)?;
                    once(&mut options.connect, peer, doubled)?;
                }
                ("linger", Some(value)) => {
                    let seconds = value.parse().map_err(|_| malformed)?;
                    once(&mut options.linger_s, seconds, doubled)?;
                }
                ("virtio_mmio.device", Some(_)) => {}
                _ => return Err(OptionsError::Unknown(word)),
            }
        }
        options.mode = mode.ok_or(OptionsError::NoMode)?;
        options.check()
    }

    fn check(self) -> Result<Options, OptionsError<'static>> {
        let server = matches!(self.mode, Mode::Server(_));
        let self_test = self.mode == Mode::SelfTest;
        let given = [
            ("listen", self.listen.is_some(), server),
            ("host", self.host.is_some(), server),
            ("boot", self.boot.is_some(), server && self.host.is_some()),
            ("alone", self.alone.is_some(), server),
            ("fenced", self.vouched.is_some(), server),
            ("echo", self.echo.is_some(), self_test),
            ("connect", self.connect.is_some(), self_test),
            ("linger", self.linger_s.is_some(), self_test),
        ];
        if let Some((name, ..)) = given.iter().find(|(_, given, useful)| *given && !useful) {
            return Err(OptionsError::Useless(name));
        }
        if server && self.addresses.is_empty() {
            return Err(OptionsError::NoAddress);
        }
        for gateway in &self.gateways {
            if !self.addresses.iter().any(|own| own.addr.is_ipv4() == gateway.is_ipv4()) {
                return Err(OptionsError::GatewayWithoutAddress(*gateway));
            }
        }
        Ok(self)
    }
}

fn once<'a, T>(
    place: &mut Option<T>,
    value: T,
    doubled: OptionsError<'a>,
) -> Result<(), OptionsError<'a>> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(doubled),
    }
}

fn parse_prefixed(value: &str) -> Option<Prefixed> {
    let (addr, prefix) = value.split_once('/')?;
    let addr: IpAddr = addr.parse().ok()?;
    let prefix = prefix.parse().ok()?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let usable = !addr.is_unspecified() && !addr.is_multicast() && !addr.is_loopback();
    (usable && (1..=most).contains(&prefix)).then_some(Prefixed { addr, prefix })
}

fn parse_port(value: &str) -> Option<u16> {
    value.parse().ok().filter(|&port| port != 0)
}

/// 32 hexadecimal digits.
fn parse_id(value: &str) -> Option<[u8; 16]> {
    let digits = value.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let digit = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(digit).ok()?;
        }
    }
    Some(id)
}

fn parse_fenced(value: &str) -> Option<Vouched> {
    match value {
        "any" => Some(Vouched::Anyone),
        id => parse_id(id).map(|id| Vouched::Gone(Incarnation(id))),
    }
}

fn parse_self_test(value: Option<&str>) -> Option<Mode> {
    Some(match value {
        None => Mode::SelfTest,
        Some("panic") => Mode::Fault(Fault::Panic),
        Some("wx") => Mode::Fault(Fault::WriteText),
        Some("nx") => Mode::Fault(Fault::ExecuteData),
        Some("null") => Mode::Fault(Fault::Null),
        Some("stack") => Mode::Fault(Fault::Stack),
        Some("divide") => Mode::Fault(Fault::Divide),
        Some("double") => Mode::Fault(Fault::DoubleFault),
        Some(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Fault, Mode, Options, OptionsError, Prefixed};
    use core::net::IpAddr;
    use outrider_core::format::quorum::{BootId, HostId, Incarnation};
    use outrider_core::quorum::{Exclusion, Vouched};

    #[test]
    fn a_server_is_understood() {
        let line = "ip=10.0.2.15/24 slot=6 listen=7001 host=00112233445566778899aAbBcCdDeEfF \
                    fenced=00112233445566778899aAbBcCdDeEfF alone \
                    boot=00112233445566778899aAbBcCdDeEfF";
        let options = Options::parse(line).unwrap();
        let id = core::array::from_fn(|index| index as u8 * 0x11);
        let Mode::Server(slot) = options.mode else { panic!("{:?}", options.mode) };
        assert_eq!((slot.number(), options.listen), (6, Some(7001)));
        assert_eq!(options.host, Some(HostId(id)));
        assert_eq!((options.boot, options.alone), (Some(BootId(id)), Some(Exclusion::Volume)));
        assert_eq!(options.vouched, Some(Vouched::Gone(Incarnation(id))));
        let any = Options::parse("ip=10.0.2.15/24 slot=0 fenced=any").unwrap();
        assert_eq!(any.vouched, Some(Vouched::Anyone));
        assert_eq!(Options::parse("slot=0"), Err(OptionsError::NoAddress));
        let boot = "ip=10.0.2.15/24 slot=0 boot=00112233445566778899aabbccddeeff";
        assert_eq!(Options::parse(boot), Err(OptionsError::Useless("boot")));
        assert_eq!(Options::parse("selftest listen=1"), Err(OptionsError::Useless("listen")));
    }

    #[test]
    fn a_whole_line_is_understood() {
        let options = Options::parse(
            " ip=10.0.2.15/24 gw=10.0.2.2 ip=fec0::15/64 disk=writethrough selftest echo=7 \
             connect=[fec0::2]:99 linger=3 virtio_mmio.device=512@0xfeb00e00:12",
        )
        .unwrap();
        let addr: IpAddr = "10.0.2.15".parse().unwrap();
        assert_eq!(options.addresses[0], Prefixed { addr, prefix: 24 });
        assert_eq!(options.addresses.len(), 2);
        assert_eq!(options.gateways.len(), 1);
        assert!(options.write_through);
        assert_eq!(options.mode, Mode::SelfTest);
        assert_eq!((options.echo, options.linger_s), (Some(7), Some(3)));
        assert_eq!(options.connect, Some("[fec0::2]:99".parse().unwrap()));
        assert_eq!(Options::parse("disk=flush"), Err(OptionsError::NoMode));
        assert_eq!(Options::parse("selftest=wx").unwrap().mode, Mode::Fault(Fault::WriteText));
    }

    #[test]
    fn every_mistake_is_named() {
        for word in ["ipp=1.2.3.4/8", "debug", "echo", "slot", "slott=1"] {
            assert_eq!(Options::parse(word), Err(OptionsError::Unknown(word)));
        }
        for word in [
            "ip=1.2.3.4",
            "ip=1.2.3/8",
            "ip=1.2.3.4/33",
            "ip=0.0.0.0/8",
            "ip=::1/64",
            "ip=/",
            "gw=",
            "gw=1.2.3.4/8",
            "disk=",
            "disk=maybe",
            "selftest=",
            "selftest=off",
            "echo=0",
            "echo=70000",
            "connect=1.2.3.4",
            "linger=-1",
            "slot=7",
            "slot=x=y",
            "listen=0",
            "host=0011",
            "boot=0011",
            "host=00112233445566778899aabbccddeefg",
            "fenced=",
            "fenced=nobody",
        ] {
            assert_eq!(Options::parse(word), Err(OptionsError::Malformed(word)), "{word}");
        }
        for line in [
            "gw=1.2.3.4 gw=5.6.7.8",
            "disk=flush disk=flush",
            "selftest selftest",
            "slot=0 slot=1",
            "selftest slot=0",
            "slot=0 alone alone",
            "fenced=any fenced=any",
            "selftest echo=1 echo=2",
            "ip=1.0.0.1/8 ip=2.0.0.1/8 ip=3.0.0.1/8 ip=4.0.0.1/8",
        ] {
            let last = line.split(' ').next_back().unwrap();
            assert_eq!(Options::parse(line), Err(OptionsError::Doubled(last)));
        }
        assert_eq!(Options::parse("selftest=wx echo=7"), Err(OptionsError::Useless("echo")));
        let gateway = "fe80::1".parse().unwrap();
        assert_eq!(
            Options::parse("selftest ip=10.0.0.1/8 gw=fe80::1"),
            Err(OptionsError::GatewayWithoutAddress(gateway))
        );
    }
}
