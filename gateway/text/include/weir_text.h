// Tokenising and constrained decoding: the C face of the Rust library beside this header.
// Functions may be called from any thread on distinct objects; a tokenizer may be shared by all.
// A function that can fail returns null or a negative value and leaves its message in weir_text_error(), this thread's
// last.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct weir_tokenizer weir_tokenizer;
typedef struct weir_constraint weir_constraint;

const char* weir_text_error(void);

// `json` is the content of a tokenizer.json.
weir_tokenizer* weir_tokenizer_open(const char* json, size_t json_size);
void weir_tokenizer_free(weir_tokenizer*);
// One more than the largest id.
size_t weir_tokenizer_vocab_size(const weir_tokenizer*);
// Encodes UTF-8; writes at most `capacity` ids and returns how many there are.  `added_tokens`: 0 for what a person
// wrote, nothing in it becomes a control token; 1 for text in which added tokens count.  BOS is never added.
int64_t weir_encode(const weir_tokenizer*, const char* text, size_t size, int added_tokens, uint32_t* ids,
                    size_t capacity);
// Decodes; writes at most `capacity` bytes and returns how many there are.  Invalid UTF-8 comes out as U+FFFD.
int64_t weir_decode(const weir_tokenizer*, const uint32_t* ids, size_t count, int skip_special, char* text,
                    size_t capacity);
// The bytes of one token as the model means them: a part of a character may stand alone.  Points into the tokenizer;
// null for an id that names nothing.
const char* weir_token_bytes(const weir_tokenizer*, uint32_t id, size_t* size);
// The id of an added token by its exact text; -1 if there is none.
int64_t weir_added_token_id(const weir_tokenizer*, const char* text, size_t size);

// The tokenizer must outlive its constraints.
weir_constraint* weir_constraint_json_schema(const weir_tokenizer*, const char* schema, size_t size);
weir_constraint* weir_constraint_clone(const weir_constraint*);
void weir_constraint_free(weir_constraint*);
// One bit a token, 32 a word; `words` at least (vocab_size + 31) / 32.  Returns the number of tokens allowed.
int64_t weir_constraint_mask(weir_constraint*, uint32_t* mask, size_t words);
// 0 when the token was allowed; a refused token ends the constraint for good.
int weir_constraint_commit(weir_constraint*, uint32_t id);
int weir_constraint_rollback(weir_constraint*, size_t tokens);
int weir_constraint_is_accepting(weir_constraint*);
int weir_constraint_is_stopped(weir_constraint*);

#ifdef __cplusplus
}
#endif
