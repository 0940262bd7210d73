/* simdjson on-demand behind json.h.
 *
 * On-demand reads the document forward, once, and checks only what it visits; so every value is visited: numbers and booleans are read,
 * strings are cut out of the text, arrays are stepped over. Stage 1 has validated UTF-8 and quoting of the whole text before. A name
 * without an escape is used where it stands in our padded copy; only nested names (and those with escapes) are built in the name arena,
 * which never moves, so spans stay valid.
 *
 * No exceptions: every call uses the error-code form, and the allocations here are nothrow. */
#include "sink/decode/json.h"

#include <simdjson.h>

#include <new>
#include <stdlib.h>
#include <string.h>
#include <string_view>
#include <utility>

namespace
{

using namespace simdjson;

constexpr size_t NAMES_SIZE = 1U << 20;

} // namespace

struct json_decoder {
    ondemand::parser parser;
    uint8_t *buffer = nullptr; /* the padded copy */
    size_t buffer_size = 0;
    json_field *fields = nullptr;
    size_t field_count = 0;
    size_t field_capacity = 0;
    json_row *rows = nullptr;
    size_t row_count = 0;
    size_t row_capacity = 0;
    uint8_t *names = nullptr;
    size_t names_used = 0;
    uint8_t prefix[JSON_NAME_MAX + 1];

    ~json_decoder()
    {
        free(buffer);
        free(fields);
        free(rows);
        free(names);
    }
};

namespace
{

bool grow(void **array, size_t *capacity, size_t need, size_t element_size)
{
    if (need <= *capacity)
        return true;
    size_t capacity_new = *capacity ? *capacity * 2 : 64;
    if (capacity_new < need)
        capacity_new = need;
    void *array_new = realloc(*array, capacity_new * element_size);
    if (!array_new)
        return false;
    *array = array_new;
    *capacity = capacity_new;
    return true;
}

json_verdict verdict_of(error_code error)
{
    if (error == MEMALLOC)
        return JSON_NO_MEMORY;
    if (error == DEPTH_ERROR)
        return JSON_TOO_DEEP;
    if (error == CAPACITY)
        return JSON_TOO_LARGE;
    return JSON_SYNTAX;
}

/* Keep `prefix` + `key` in the name arena. */
json_verdict name_build(json_decoder *decoder, span *out, size_t prefix_size, std::string_view key)
{
    size_t size = prefix_size + key.size();
    if (size > JSON_NAME_MAX || decoder->names_used + size > NAMES_SIZE)
        return JSON_TOO_LARGE;
    uint8_t *at = decoder->names + decoder->names_used;
    memcpy(at, decoder->prefix, prefix_size);
    memcpy(at + prefix_size, key.data(), key.size());
    decoder->names_used += size;
    *out = span{at, size};
    return JSON_OK;
}

std::string_view trim(std::string_view text)
{
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\n' || text.back() == '\r'))
        text.remove_suffix(1);
    return text;
}

/* The grammar of RFC 8259, for a token that did not fit a double: it is a number outside the range, or no JSON. */
bool is_number(std::string_view token)
{
    size_t at = 0;
    auto digits = [&] {
        size_t first = at;
        while (at < token.size() && token[at] >= '0' && token[at] <= '9')
            at++;
        return at - first;
    };
    auto take = [&](const char *set) { return at < token.size() && strchr(set, token[at]) && token[at] && ++at; };
    take("-");
    if (at < token.size() && token[at] == '0')
        at++;
    else if (digits() == 0)
        return false;
    if (take(".") && digits() == 0)
        return false;
    if (take("eE")) {
        take("+-");
        if (digits() == 0)
            return false;
    }
    return at == token.size();
}

json_verdict read_object(json_decoder *decoder, ondemand::object object, size_t prefix_size, unsigned depth);

/* Read one scalar or array into `out`; the caller has set the name. */
json_verdict read_value(json_decoder *decoder, json_field *out, ondemand::value value, ondemand::json_type type)
{
    (void)decoder;
    switch (type) {
    case ondemand::json_type::number: {
        std::string_view token = trim(value.raw_json_token());
        out->text = span{reinterpret_cast<const uint8_t *>(token.data()), token.size()};
        error_code error = value.get_double().get(out->value);
        out->kind = JSON_NUMBER;
        if (!error)
            return JSON_OK;
        out->kind = JSON_UNREADABLE;
        return is_number(token) ? JSON_OK : JSON_SYNTAX;
    }
    case ondemand::json_type::boolean: {
        bool boolean;
        error_code error = value.get_bool().get(boolean);
        out->kind = JSON_BOOLEAN;
        out->value = !error && boolean ? 1 : 0;
        return error ? JSON_SYNTAX : JSON_OK;
    }
    case ondemand::json_type::string: {
        std::string_view token = trim(value.raw_json_token());
        ondemand::raw_json_string raw;
        error_code error = value.get_raw_json_string().get(raw);
        if (error)
            return verdict_of(error);
        out->kind = JSON_STRING;
        if (token.size() < 2 || token.back() != '"')
            return JSON_SYNTAX;
        out->text = span{reinterpret_cast<const uint8_t *>(token.data()) + 1, token.size() - 2};
        return JSON_OK;
    }
    case ondemand::json_type::null: {
        bool is_null = false;
        if (value.is_null().get(is_null) != SUCCESS || !is_null)
            return JSON_SYNTAX;
        out->kind = JSON_NULL;
        return JSON_OK;
    }
    case ondemand::json_type::array:
        out->kind = JSON_ARRAY;
        return JSON_OK; /* the object iterator steps over it */
    case ondemand::json_type::object:
        break;
    }
    return JSON_SYNTAX;
}

json_verdict read_field(json_decoder *decoder, simdjson_result<ondemand::field> result, size_t prefix_size, unsigned depth)
{
    ondemand::field field;
    error_code error = std::move(result).get(field);
    if (error)
        return verdict_of(error);
    std::string_view key;
    error = field.unescaped_key().get(key);
    if (error)
        return verdict_of(error);
    ondemand::value value = field.value();
    ondemand::json_type type;
    error = value.type().get(type);
    if (error)
        return verdict_of(error);
    if (type == ondemand::json_type::object) {
        ondemand::object object;
        if (depth + 1 >= JSON_DEPTH_MAX)
            return JSON_TOO_DEEP;
        if (prefix_size + key.size() + 1 > JSON_NAME_MAX)
            return JSON_TOO_LARGE;
        memcpy(decoder->prefix + prefix_size, key.data(), key.size());
        decoder->prefix[prefix_size + key.size()] = '.';
        error = value.get_object().get(object);
        return error ? verdict_of(error) : read_object(decoder, object, prefix_size + key.size() + 1, depth + 1);
    }
    if (decoder->field_count >= JSON_FIELDS_MAX)
        return JSON_TOO_LARGE;
    void *fields = decoder->fields;
    if (!grow(&fields, &decoder->field_capacity, decoder->field_count + 1, sizeof(json_field)))
        return JSON_NO_MEMORY;
    decoder->fields = static_cast<json_field *>(fields);
    json_field *out = &decoder->fields[decoder->field_count];
    *out = json_field{};
    if (prefix_size > 0) {
        json_verdict verdict = name_build(decoder, &out->name, prefix_size, key);
        if (verdict != JSON_OK)
            return verdict;
    } else {
        /* The parser's own string buffer, which lives as long as the document. */
        if (key.size() > JSON_NAME_MAX)
            return JSON_TOO_LARGE;
        out->name = span{reinterpret_cast<const uint8_t *>(key.data()), key.size()};
    }
    json_verdict verdict = read_value(decoder, out, value, type);
    decoder->field_count += verdict == JSON_OK;
    return verdict;
}

json_verdict read_object(json_decoder *decoder, ondemand::object object, size_t prefix_size, unsigned depth)
{
    for (auto result : object) {
        json_verdict verdict = read_field(decoder, result, prefix_size, depth);
        if (verdict != JSON_OK)
            return verdict;
    }
    return JSON_OK;
}

json_verdict read_row(json_decoder *decoder, ondemand::object object)
{
    if (decoder->row_count >= JSON_ROWS_MAX)
        return JSON_TOO_LARGE;
    void *rows = decoder->rows;
    if (!grow(&rows, &decoder->row_capacity, decoder->row_count + 1, sizeof(json_row)))
        return JSON_NO_MEMORY;
    decoder->rows = static_cast<json_row *>(rows);
    uint32_t first = static_cast<uint32_t>(decoder->field_count);
    json_verdict verdict = read_object(decoder, object, 0, 0);
    decoder->rows[decoder->row_count++] = json_row{first, static_cast<uint32_t>(decoder->field_count) - first};
    return verdict;
}

json_verdict read_array(json_decoder *decoder, ondemand::array array)
{
    for (auto result : array) {
        ondemand::value value;
        error_code error = result.get(value);
        if (error)
            return verdict_of(error);
        ondemand::json_type type;
        error = value.type().get(type);
        if (error)
            return verdict_of(error);
        if (type != ondemand::json_type::object)
            return JSON_NOT_OBJECT;
        ondemand::object object;
        error = value.get_object().get(object);
        json_verdict verdict = error ? verdict_of(error) : read_row(decoder, object);
        if (verdict != JSON_OK)
            return verdict;
    }
    return JSON_OK;
}

json_verdict read_document(json_decoder *decoder, ondemand::document &document)
{
    ondemand::json_type type;
    error_code error = document.type().get(type);
    if (error)
        return verdict_of(error);
    json_verdict verdict = JSON_NOT_OBJECT;
    if (type == ondemand::json_type::object) {
        ondemand::object object;
        error = document.get_object().get(object);
        verdict = error ? verdict_of(error) : read_row(decoder, object);
    } else if (type == ondemand::json_type::array) {
        ondemand::array array;
        error = document.get_array().get(array);
        verdict = error ? verdict_of(error) : read_array(decoder, array);
    } else {
        double number;
        bool boolean = false;
        /* "aaaa" of a load generator is no JSON; 61.5 is JSON without a metric's name. */
        if (type == ondemand::json_type::number)
            return document.get_double().get(number) ? JSON_SYNTAX : JSON_NOT_OBJECT;
        if (type == ondemand::json_type::boolean)
            return document.get_bool().get(boolean) ? JSON_SYNTAX : JSON_NOT_OBJECT;
        if (type == ondemand::json_type::null)
            return document.is_null().get(boolean) || !boolean ? JSON_SYNTAX : JSON_NOT_OBJECT;
        std::string_view string;
        return document.get_string().get(string) ? JSON_SYNTAX : JSON_NOT_OBJECT;
    }
    const char *location;
    if (verdict == JSON_OK && document.current_location().get(location) != OUT_OF_BOUNDS)
        return JSON_SYNTAX; /* bytes behind the document */
    return verdict;
}

} // namespace

extern "C" struct json_decoder *json_new(void)
{
    json_decoder *decoder = new (std::nothrow) json_decoder;
    if (!decoder)
        return nullptr;
    decoder->names = static_cast<uint8_t *>(malloc(NAMES_SIZE));
    if (!decoder->names) {
        delete decoder;
        return nullptr;
    }
    return decoder;
}

extern "C" void json_free(struct json_decoder *decoder) { delete decoder; }

extern "C" enum json_verdict json_decode(struct json_decoder *decoder, struct json_document *out, struct span text)
{
    if (text.size > JSON_SIZE_MAX)
        return JSON_TOO_LARGE;
    if (text.size == 0)
        return JSON_SYNTAX;
    if (decoder->buffer_size < text.size + SIMDJSON_PADDING) {
        size_t size = (text.size + SIMDJSON_PADDING) * 2;
        uint8_t *buffer = static_cast<uint8_t *>(realloc(decoder->buffer, size));
        if (!buffer)
            return JSON_NO_MEMORY;
        decoder->buffer = buffer;
        decoder->buffer_size = size;
    }
    memcpy(decoder->buffer, text.data, text.size);
    memset(decoder->buffer + text.size, ' ', SIMDJSON_PADDING);
    decoder->field_count = 0;
    decoder->row_count = 0;
    decoder->names_used = 0;
    ondemand::document document;
    error_code error = decoder->parser.iterate(decoder->buffer, text.size, decoder->buffer_size).get(document);
    if (error)
        return verdict_of(error);
    json_verdict verdict = read_document(decoder, document);
    if (verdict != JSON_OK)
        return verdict;
    *out = json_document{decoder->rows, decoder->row_count, decoder->fields, decoder->field_count};
    return JSON_OK;
}
