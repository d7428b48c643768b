//! A client's memory.
//!
//! The client opened `/proc/self/mem` and sent the descriptor: that is the capability, which needs no ptrace right and
//! can't come to mean another process. After the client's `exec` or death every access is `EFAULT`.
//!
//! The kernel lets this file write through read-only private mappings (it is a debugger's door); a driver that must
//! respect protection checks it by other means.

use std::os::fd::OwnedFd;

use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use rustix::fs::{PROC_SUPER_MAGIC, fstatfs};
use rustix::io::{pread, pwrite};

use super::Errno;

/// A client's memory. Addresses are the client's.
#[derive(Debug)]
pub struct ClientMemory {
    file: OwnedFd,
}

/// Elements read at a time while an array's length is only claimed.
const CHUNK_BYTES: usize = 64 * 1024;

impl ClientMemory {
    /// Takes what a client claims to be its memory.
    ///
    /// # Errors
    /// `EINVAL` unless it is a `/proc/PID/mem`: any other file could block the server or change under it.
    pub(super) fn new(file: OwnedFd) -> Result<Self, Errno> {
        use std::os::fd::AsRawFd;
        if fstatfs(&file)?.f_type != PROC_SUPER_MAGIC {
            return Err(Errno::INVAL);
        }
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
        let link = link.to_string_lossy();
        let middle = link.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/mem"));
        match middle {
            Some(pid) if pid.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Self { file }),
            _ => Err(Errno::INVAL),
        }
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// `EFAULT` if any of them can't be read; `bytes` is then partly filled.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::FAULT)?;
            match pread(&self.file, &mut bytes[done..], at) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Errno::FAULT),
            }
        }
        Ok(())
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `EFAULT` if any of them can't be written; some may be.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::FAULT)?;
            match pwrite(&self.file, &bytes[done..], at) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Errno::FAULT),
            }
        }
        Ok(())
    }

    /// Reads a structure.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read_pod<T: AnyBitPattern + NoUninit>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::zeroed();
        self.read(address, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Writes a structure.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write_pod<T: NoUninit>(&self, address: u64, value: &T) -> Result<(), Errno> {
        self.write(address, bytemuck::bytes_of(value))
    }

    /// Reads an array of `count` structures. Memory for it is taken as the bytes turn out to exist, so that a
    /// wild count with a bad address costs nothing.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL` if the size overflows; `ENOMEM`.
    pub fn read_array<T>(&self, address: u64, count: usize) -> Result<Vec<T>, Errno>
    where
        T: AnyBitPattern + NoUninit + Zeroable,
    {
        count.checked_mul(size_of::<T>().max(1)).ok_or(Errno::INVAL)?;
        let step = (CHUNK_BYTES / size_of::<T>().max(1)).max(1);
        let mut values: Vec<T> = Vec::new();
        while values.len() < count {
            let from = values.len();
            let upto = count.min(from + step);
            values.try_reserve(upto - from).map_err(|_| Errno::NOMEM)?;
            values.resize(upto, T::zeroed());
            let at = address.checked_add((from * size_of::<T>()) as u64).ok_or(Errno::FAULT)?;
            self.read(at, bytemuck::cast_slice_mut(&mut values[from..]))?;
        }
        Ok(values)
    }

    /// Writes an array of structures.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write_array<T: NoUninit>(&self, address: u64, values: &[T]) -> Result<(), Errno> {
        self.write(address, bytemuck::cast_slice(values))
    }
}
