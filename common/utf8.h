/* UTF-8 as MQTT wants it: well formed, no surrogates, no U+0000 ([MQTT-1.5.4-1], [MQTT-1.5.4-2]).
 *
 * Overlong forms and code points past U+10FFFF are malformed. Control characters and non-characters are allowed here: the standard lets a
 * receiver refuse them, it does not have to; utf8_has_control() answers for whoever wants to. Pure. Thread: any. */
#ifndef TIDEGATE_COMMON_UTF8_H
#define TIDEGATE_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

/* Whether the span is a UTF-8 Encoded String's text. ASCII goes at 8 bytes a step. */
bool utf8_is_valid(struct span text);

/* Whether text contains U+0001..U+001F or U+007F..U+009F, or a non-character (U+FDD0..U+FDEF, U+xxFFFE, U+xxFFFF); `text` is valid UTF-8.
 */
bool utf8_has_control(struct span text);

/* Decode one code point of at most `size` > 0 bytes at `at` into `*code_point_out`.
 * Returns the bytes used, 1..4, or 0 when they begin no well-formed sequence. U+0000 is well formed here. */
size_t utf8_decode(uint32_t *code_point_out, const uint8_t *at, size_t size);

#endif
