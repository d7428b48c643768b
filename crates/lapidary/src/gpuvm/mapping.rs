//! What a mapping is: a range of addresses, what stands behind it, and the driver's tag.
//!
//! Two forms exist. [`MappingRef`] borrows the [`VmBo`]: requests are made with it, and steps and lookups show
//! mappings as it. [`Mapping`] owns a reference to the `VmBo` and so keeps the object alive: step lists hold it,
//! which is why memory that a step list still has to unmap can't be reused.

use core::fmt;

use super::VmTypes;
use super::va::{Va, VaRange};
use super::vm_bo::VmBo;

/// What stands behind a mapping, borrowed.
pub enum BackingRef<'a, T: VmTypes> {
    /// An object's memory, from `offset` (bytes) on.
    Object {
        /// The object, as this address space knows it.
        vm_bo: &'a VmBo<T>,
        /// Where in the object the mapping begins, in bytes.
        offset: u64,
    },
    /// Nothing: reads give zero, writes are dropped (a sparse binding).
    Null,
    /// The client's own memory at `addr` in its process (userptr).
    Host {
        /// Where in the process the mapping begins.
        addr: u64,
    },
}

impl<T: VmTypes> Clone for BackingRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: VmTypes> Copy for BackingRef<'_, T> {}

impl<'a, T: VmTypes> BackingRef<'a, T> {
    /// The same backing `bytes` further on. The caller stays inside the mapping, so this can't overflow.
    pub(crate) fn advanced(self, bytes: u64) -> Self {
        match self {
            BackingRef::Object { vm_bo, offset } => BackingRef::Object { vm_bo, offset: offset + bytes },
            BackingRef::Null => BackingRef::Null,
            BackingRef::Host { addr } => BackingRef::Host { addr: addr + bytes },
        }
    }

    /// The object, unless the backing has none.
    pub fn vm_bo(self) -> Option<&'a VmBo<T>> {
        match self {
            BackingRef::Object { vm_bo, .. } => Some(vm_bo),
            BackingRef::Null | BackingRef::Host { .. } => None,
        }
    }

    /// The owned form.
    pub fn to_owned(self) -> Backing<T> {
        match self {
            BackingRef::Object { vm_bo, offset } => Backing::Object { vm_bo: vm_bo.clone(), offset },
            BackingRef::Null => Backing::Null,
            BackingRef::Host { addr } => Backing::Host { addr },
        }
    }
}

impl<T: VmTypes> PartialEq for BackingRef<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (BackingRef::Object { vm_bo: a, offset: x }, BackingRef::Object { vm_bo: b, offset: y }) => {
                a.ptr_eq(b) && x == y
            }
            (BackingRef::Null, BackingRef::Null) => true,
            (BackingRef::Host { addr: a }, BackingRef::Host { addr: b }) => a == b,
            _ => false,
        }
    }
}

impl<T: VmTypes> fmt::Debug for BackingRef<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackingRef::Object { vm_bo, offset } => {
                write!(f, "object {:#x} + {offset:#x}", vm_bo.object_id().0)
            }
            BackingRef::Null => f.write_str("null"),
            BackingRef::Host { addr } => write!(f, "host {addr:#x}"),
        }
    }
}

/// A mapping, borrowed: also the form in which one is asked for.
pub struct MappingRef<'a, T: VmTypes> {
    /// Where it is.
    pub range: VaRange,
    /// What stands behind it.
    pub backing: BackingRef<'a, T>,
    /// The driver's own word on it.
    pub tag: T::Tag,
}

impl<'a, T: VmTypes> MappingRef<'a, T> {
    /// `range` shows `vm_bo`'s object from byte `offset` on.
    pub fn object(range: VaRange, vm_bo: &'a VmBo<T>, offset: u64, tag: T::Tag) -> Self {
        MappingRef { range, backing: BackingRef::Object { vm_bo, offset }, tag }
    }

    /// `range` reads zero and drops writes.
    pub fn null(range: VaRange, tag: T::Tag) -> Self {
        MappingRef { range, backing: BackingRef::Null, tag }
    }

    /// `range` shows the client's memory from `addr` on.
    pub fn host(range: VaRange, addr: u64, tag: T::Tag) -> Self {
        MappingRef { range, backing: BackingRef::Host { addr }, tag }
    }

    /// The first address.
    pub fn start(&self) -> Va {
        self.range.start()
    }

    /// The object, unless the backing has none.
    pub fn vm_bo(&self) -> Option<&'a VmBo<T>> {
        self.backing.vm_bo()
    }

    /// The piece of this mapping that `part` of its range shows, the backing advanced to match.
    ///
    /// `part` must lie inside [`range`](Self::range).
    pub fn piece(&self, part: VaRange) -> Self {
        debug_assert!(self.range.covers(part));
        let skipped = part.start().raw() - self.range.start().raw();
        MappingRef { range: part, backing: self.backing.advanced(skipped), tag: self.tag }
    }

    /// Whether, where the two overlap, both show the same bytes in the same way, so that page-table entries made
    /// for one serve the other. Client memory never counts as the same: what the address stands for may have
    /// changed in between.
    pub fn shows_the_same_as(&self, other: &MappingRef<'_, T>) -> bool {
        if self.tag != other.tag {
            return false;
        }
        match (self.backing, other.backing) {
            (BackingRef::Object { vm_bo: a, offset: x }, BackingRef::Object { vm_bo: b, offset: y }) => {
                let origin = |at: u64, va: Va| at.wrapping_sub(va.raw());
                a.ptr_eq(b) && origin(x, self.start()) == origin(y, other.start())
            }
            (BackingRef::Null, BackingRef::Null) => true,
            _ => false,
        }
    }

    /// The owned form, which keeps the object alive.
    pub fn to_owned(&self) -> Mapping<T> {
        Mapping { range: self.range, backing: self.backing.to_owned(), tag: self.tag }
    }
}

impl<T: VmTypes> Clone for MappingRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: VmTypes> Copy for MappingRef<'_, T> {}

impl<T: VmTypes> PartialEq for MappingRef<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.range == other.range && self.backing == other.backing && self.tag == other.tag
    }
}

impl<T: VmTypes> fmt::Debug for MappingRef<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.range, self.backing)
    }
}

/// What stands behind a mapping, with a reference of its own. See [`BackingRef`].
pub enum Backing<T: VmTypes> {
    /// An object's memory, from `offset` (bytes) on.
    Object {
        /// The object, as this address space knows it.
        vm_bo: VmBo<T>,
        /// Where in the object the mapping begins, in bytes.
        offset: u64,
    },
    /// Nothing: reads give zero, writes are dropped.
    Null,
    /// The client's own memory at `addr` in its process (userptr).
    Host {
        /// Where in the process the mapping begins.
        addr: u64,
    },
}

impl<T: VmTypes> Backing<T> {
    /// The borrowed form.
    pub fn as_ref(&self) -> BackingRef<'_, T> {
        match self {
            Backing::Object { vm_bo, offset } => BackingRef::Object { vm_bo, offset: *offset },
            Backing::Null => BackingRef::Null,
            Backing::Host { addr } => BackingRef::Host { addr: *addr },
        }
    }
}

/// A mapping with a reference to its object. See [`MappingRef`].
pub struct Mapping<T: VmTypes> {
    /// Where it is.
    pub range: VaRange,
    /// What stands behind it.
    pub backing: Backing<T>,
    /// The driver's own word on it.
    pub tag: T::Tag,
}

impl<T: VmTypes> Mapping<T> {
    /// The borrowed form.
    pub fn as_ref(&self) -> MappingRef<'_, T> {
        MappingRef { range: self.range, backing: self.backing.as_ref(), tag: self.tag }
    }

    /// The object, unless the backing has none.
    pub fn vm_bo(&self) -> Option<&VmBo<T>> {
        self.backing.as_ref().vm_bo()
    }
}

impl<T: VmTypes> Clone for Mapping<T> {
    fn clone(&self) -> Self {
        self.as_ref().to_owned()
    }
}

impl<T: VmTypes> PartialEq for Mapping<T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl<T: VmTypes> fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}
