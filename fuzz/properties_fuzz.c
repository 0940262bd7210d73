/* Any bytes as a property block: what is accepted encodes to a block that says the same, and what is forwarded of a PUBLISH is a block that
 * is accepted again. Input: byte 0 chooses packet type and sender; the rest is the block with its length. */
#include <stdlib.h>

#include "broker/mqtt/frame.h"
#include "broker/mqtt/properties.h"
#include "common/check.h"
#include "tests/lib/packet_equal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A block with its length in front; to be freed. */
static uint8_t *block_of(size_t *size_out, size_t content_size)
{
    uint8_t *block = malloc(MQTT_VARINT_SIZE_MAX + content_size);
    CHECK(block);
    *size_out = mqtt_varint_put(block, (uint32_t)content_size);
    return block;
}

static void check_again(const struct mqtt_properties *props, enum mqtt_packet_type type, enum mqtt_sender sender)
{
    size_t content_size = properties_size(props);
    size_t size;
    uint8_t *block = block_of(&size, content_size);
    CHECK(properties_put(block + size, props) == content_size);
    size += content_size;
    struct mqtt_properties back;
    size_t used = 0;
    CHECK(properties_decode(&back, &used, type, sender, block, block + size).judgement == MQTT_OK);
    CHECK(used == size);
    CHECK(properties_differ(props, &back) == NULL);
    CHECK(content_size == props->raw.size); /* nothing is lost or added, only the order may change */
    free(block);
}

static void check_forwarding(const struct mqtt_properties *props)
{
    static const uint32_t ids[] = {1, MQTT_VARINT_MAX};
    struct properties_forward forward = {
        .has_message_expiry = true,
        .topic_alias = 1,
        .subscription_identifiers = ids,
        .subscription_identifier_count = 2,
    };
    size_t forwardable_size = properties_forwardable_size(props->raw);
    CHECK(forwardable_size <= props->raw.size);
    size_t own_size = properties_forward_own_size(&forward);
    size_t size;
    uint8_t *block = block_of(&size, own_size + forwardable_size);
    size += properties_forward_own_put(block + size, &forward);
    CHECK(properties_forwardable_put(block + size, props->raw) == forwardable_size);
    size += forwardable_size;
    struct mqtt_properties back;
    size_t used = 0;
    CHECK(properties_decode(&back, &used, MQTT_PUBLISH, MQTT_FROM_SERVER, block, block + size).judgement == MQTT_OK);
    CHECK(used == size);
    CHECK(back.user_property_count == props->user_property_count);
    CHECK(back.subscription_identifier_count == 2);
    free(block);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    enum mqtt_packet_type type = data[0] & 0xf;
    enum mqtt_sender sender = data[0] & 0x10 ? MQTT_FROM_SERVER : MQTT_FROM_CLIENT;
    struct mqtt_properties props;
    size_t used = 0;
    struct mqtt_verdict verdict = properties_decode(&props, &used, type, sender, data + 1, data + size);
    CHECK((verdict.judgement == MQTT_BAD) == (verdict.text != NULL));
    if (verdict.judgement == MQTT_BAD)
        return 0;
    CHECK(used >= 1 && used <= size - 1);
    check_again(&props, type, sender);
    if (type == MQTT_PUBLISH || type == MQTT_WILL)
        check_forwarding(&props);
    return 0;
}
