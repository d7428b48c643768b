//! Contexts that are made at their first use: who makes it, who is too late.

use shuttle::thread;

use crate::{
    Counter, check,
    proto::{ProtoContext, ProtoError},
    sync::Arc,
};

/// Two first uses and a change of the parameters: one context is made, both get it, and it has the change or the change was
/// refused.
#[test]
fn a_context_is_made_once_and_from_what_was_set() {
    check(500, || {
        let proto = Arc::new(ProtoContext::new(1));
        let made = Counter::default();
        let uses = [(), ()].map(|()| {
            let (proto, made) = (proto.clone(), made.clone());
            thread::spawn(move || {
                let build = |parameters: &u32| {
                    made.add();
                    thread::yield_now();
                    Ok::<_, ProtoError>(*parameters)
                };
                proto.fix(build).unwrap()
            })
        });
        let configured = proto.configure(|parameters| *parameters = 2);
        let [first, second] = uses.map(|thread| thread.join().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(made.get(), 1);
        assert_eq!(configured, if *first == 2 { Ok(()) } else { Err(ProtoError::Fixed) });
        assert_eq!(proto.configure(|_| ()), Err(ProtoError::Fixed));
    });
}

/// A first use that fails, one that does not, and the end: who ends it gets the context that was made, or none is made.
#[test]
fn no_context_comes_to_be_behind_the_back_of_who_closed() {
    check(500, || {
        let proto = Arc::new(ProtoContext::new(()));
        let uses = [false, true].map(|works| {
            let proto = proto.clone();
            thread::spawn(move || {
                // Fails with nothing where the building does.
                proto.fix::<Option<ProtoError>>(|()| {
                    thread::yield_now();
                    if works { Ok(()) } else { Err(None) }
                })
            })
        });
        let closed = proto.close();
        let [failing, working] = uses.map(|thread| thread.join().unwrap());
        match &closed {
            Some(context) => {
                assert!(working.is_ok_and(|made| Arc::ptr_eq(&made, context)));
                assert!(failing.is_ok() || failing == Err(None));
            }
            None => {
                assert_eq!(working, Err(Some(ProtoError::Closed)));
                assert!(failing == Err(None) || failing == Err(Some(ProtoError::Closed)));
            }
        }
        assert_eq!(closed.is_some(), proto.context().is_some());
    });
}
