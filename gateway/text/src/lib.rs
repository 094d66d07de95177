//! The C face of `tokenizers` and `llguidance`; see include/weir_text.h.
use std::cell::RefCell;
use std::ffi::{c_char, c_int, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};

use llguidance::{api::TopLevelGrammar, Matcher, ParserFactory};
use tokenizers::tokenizer::Tokenizer;
use toktrie_hf_tokenizers::ByteTokenizer;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

thread_local! { static ERROR: RefCell<CString> = RefCell::default(); }

/// Runs `f`; an error or a panic becomes `bad` and this thread's message.
fn guard<T>(bad: T, f: impl FnOnce() -> Fallible<T>) -> T {
    let message = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic),
    };
    ERROR.with(|e| *e.borrow_mut() = CString::new(message.replace('\0', " ")).unwrap_or_default());
    bad
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_else(|| "panic".into())
}

unsafe fn bytes<'a>(p: *const c_char, n: usize) -> &'a [u8] {
    if n == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(p as *const u8, n)
    }
}

unsafe fn copy_out<T: Copy>(from: &[T], to: *mut T, capacity: usize) -> i64 {
    std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len().min(capacity));
    from.len() as i64
}

/// `plain` is `tokenizer` without its added tokens: content that spells `<｜User｜>` must not become that token, and DeepSeek does
/// not flag it special, so the library's own switch for special tokens would not do.
struct Shared {
    tokenizer: Tokenizer,
    plain: Tokenizer,
    token_bytes: Vec<Vec<u8>>,
    factory: OnceLock<ParserFactory>,
}
pub struct WeirTokenizer(Arc<Shared>);
pub struct WeirConstraint {
    matcher: Matcher,
}

impl Shared {
    /// Built at the first constraint: it costs a good part of a second for 128k tokens.
    fn factory(&self) -> Fallible<&ParserFactory> {
        if let Some(factory) = self.factory.get() {
            return Ok(factory);
        }
        let env = ByteTokenizer::from_tokenizer(self.tokenizer.clone())?.into_tok_env(None)?;
        let mut factory = ParserFactory::new_simple(&env)?;
        factory.quiet();
        Ok(self.factory.get_or_init(|| factory))
    }
}

#[no_mangle]
pub extern "C" fn weir_text_error() -> *const c_char {
    ERROR.with(|e| e.borrow().as_ptr())
}

#[no_mangle]
pub unsafe extern "C" fn weir_tokenizer_open(json: *const c_char, size: usize) -> *mut WeirTokenizer {
    guard(std::ptr::null_mut(), || {
        let tokenizer = Tokenizer::from_bytes(bytes(json, size))?;
        let mut token_bytes = ByteTokenizer::from_tokenizer(tokenizer.clone())?.token_bytes();
        // toktrie marks added tokens with a leading 0xFF, which is not part of their text.
        for id in tokenizer.get_added_tokens_decoder().keys() {
            if let Some(b) = token_bytes.get_mut(*id as usize) {
                if b.first() == Some(&0xFF) {
                    b.remove(0);
                }
            }
        }
        let mut plain = Tokenizer::new(tokenizer.get_model().clone());
        plain.with_normalizer(tokenizer.get_normalizer().cloned());
        plain.with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned());
        let shared = Shared { tokenizer, plain, token_bytes, factory: OnceLock::new() };
        Ok(Box::into_raw(Box::new(WeirTokenizer(Arc::new(shared)))))
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_tokenizer_free(t: *mut WeirTokenizer) {
    if !t.is_null() {
        drop(Box::from_raw(t))
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_tokenizer_vocab_size(t: *const WeirTokenizer) -> usize {
    (&*t).0.token_bytes.len()
}

#[no_mangle]
pub unsafe extern "C" fn weir_encode(
    t: *const WeirTokenizer,
    text: *const c_char,
    size: usize,
    added_tokens: c_int,
    ids: *mut u32,
    capacity: usize,
) -> i64 {
    guard(-1, || {
        let text = std::str::from_utf8(bytes(text, size))?;
        let shared = &(&*t).0;
        let tokenizer = if added_tokens != 0 { &shared.tokenizer } else { &shared.plain };
        Ok(copy_out(tokenizer.encode_fast(text, false)?.get_ids(), ids, capacity))
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_decode(
    t: *const WeirTokenizer,
    ids: *const u32,
    count: usize,
    skip_special: c_int,
    text: *mut c_char,
    capacity: usize,
) -> i64 {
    guard(-1, || {
        let ids = if count == 0 { &[] } else { std::slice::from_raw_parts(ids, count) };
        let decoded = (&*t).0.tokenizer.decode(ids, skip_special != 0)?;
        Ok(copy_out(decoded.as_bytes(), text as *mut u8, capacity))
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_token_bytes(t: *const WeirTokenizer, id: u32, size: *mut usize) -> *const c_char {
    match (&*t).0.token_bytes.get(id as usize) {
        Some(b) if !b.is_empty() => {
            *size = b.len();
            b.as_ptr() as *const c_char
        }
        _ => {
            *size = 0;
            std::ptr::null()
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_added_token_id(t: *const WeirTokenizer, text: *const c_char, size: usize) -> i64 {
    guard(-1, || {
        let text = std::str::from_utf8(bytes(text, size))?;
        let tokenizer = &(&*t).0.tokenizer;
        let added = tokenizer.get_added_tokens_decoder();
        Ok(match tokenizer.token_to_id(text) {
            Some(id) if added.contains_key(&id) => id as i64,
            _ => -1,
        })
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_json_schema(
    t: *const WeirTokenizer,
    schema: *const c_char,
    size: usize,
) -> *mut WeirConstraint {
    guard(std::ptr::null_mut(), || {
        let schema: serde_json::Value = serde_json::from_slice(bytes(schema, size))?;
        let parser = (&*t).0.factory()?.create_parser(TopLevelGrammar::from_json_schema(schema))?;
        Ok(Box::into_raw(Box::new(WeirConstraint { matcher: Matcher::new(Ok(parser)) })))
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_clone(c: *const WeirConstraint) -> *mut WeirConstraint {
    guard(std::ptr::null_mut(), || {
        Ok(Box::into_raw(Box::new(WeirConstraint { matcher: (&*c).matcher.deep_clone() })))
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_free(c: *mut WeirConstraint) {
    if !c.is_null() {
        drop(Box::from_raw(c))
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_mask(c: *mut WeirConstraint, mask: *mut u32, words: usize) -> i64 {
    guard(-1, || {
        let allowed = (&mut *c).matcher.compute_mask_or_eos()?;
        copy_out(allowed.as_slice(), mask, words);
        Ok(allowed.num_set() as i64)
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_commit(c: *mut WeirConstraint, id: u32) -> c_int {
    guard(-1, || {
        (&mut *c).matcher.consume_token(id)?;
        Ok(0)
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_rollback(c: *mut WeirConstraint, tokens: usize) -> c_int {
    guard(-1, || {
        (&mut *c).matcher.rollback(tokens)?;
        Ok(0)
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_is_accepting(c: *mut WeirConstraint) -> c_int {
    guard(-1, || Ok((&mut *c).matcher.is_accepting()? as c_int))
}

#[no_mangle]
pub unsafe extern "C" fn weir_constraint_is_stopped(c: *mut WeirConstraint) -> c_int {
    (&*c).matcher.is_stopped() as c_int
}
