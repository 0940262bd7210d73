/* Sessions that come and go at random beside publishers of QoS 2, with a checkpoint: nothing is lost, nothing comes twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_numbers.h"

#define SUBSCRIBERS 4
#define NUMBERS 3000

struct receiver {
    struct rig_client *client; /* NULL = away */
    char id[8];
    uint8_t qos;
    unsigned highest[2]; /* of each publisher */
    uint8_t got[2][NUMBERS];
    bool is_open[65536]; /* QoS 2 identifiers */
};

static void receive(struct receiver *to)
{
    for (const struct packet *packet; (packet = rig_next(to->client)) != NULL;) {
        if (packet->type == MQTT_PUBREL) {
            to->is_open[packet->ack.packet_id] = false;
            rig_send_ack(to->client, MQTT_PUBCOMP, packet->ack.packet_id);
            continue;
        }
        if (packet->type != MQTT_PUBLISH)
            continue;
        unsigned p = packet->publish.topic.data[2] == '1', number = number_of(packet);
        assert_true(number < NUMBERS);
        uint16_t id = packet->publish.packet_id;
        bool is_again = packet->publish.qos == 2 && to->is_open[id];
        if (!is_again) {
            if (to->got[p][number] > 0)
                assert_true(packet->publish.qos == 1 && packet->publish.dup);
            else
                assert_true(number > to->highest[p]); /* order of the first sending */
            to->highest[p] = number > to->highest[p] ? number : to->highest[p];
            to->got[p][number]++;
        } else
            assert_true(packet->publish.dup);
        if (packet->publish.qos == 2)
            to->is_open[id] = true;
        rig_send_ack(to->client, packet->publish.qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, id);
    }
}

static void random_sessions_lose_nothing(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(21);
    struct check_random random;
    check_random_init(&random, seed);
    struct rig *rig = STORE_RIG(.shard_count = 3, .delay_seed = seed, .ring_size = 64,
                                .limits = {.session_queue_messages_max = 100000, .inflight_max = 6});
    struct rig_client *pubs[2] = {rig_connect(rig, "p0", MQTT_V5, true), rig_connect(rig, "p1", MQTT_V5, true)};
    struct receiver *to = calloc(SUBSCRIBERS, sizeof *to);
    assert_non_null(to);
    for (unsigned i = 0; i < SUBSCRIBERS; i++) {
        snprintf(to[i].id, sizeof to[i].id, "s%u", i);
        to[i].qos = 1 + i % 2;
        to[i].client = rig_connect(rig, to[i].id, MQTT_V5, false);
        rig_subscribe(to[i].client, 1, "a/#", to[i].qos);
    }
    unsigned sent[2] = {0, 0};
    for (int step = 0; step < 6000; step++) {
        unsigned p = (unsigned)check_random_below(&random, 2);
        struct receiver *one = &to[check_random_below(&random, SUBSCRIBERS)];
        switch (check_random_below(&random, 12)) {
        case 0:
        case 1:
        case 2:
            if (sent[p] + 1 < NUMBERS) {
                sent[p]++;
                publish_number(pubs[p], p ? "a/1" : "a/0", sent[p], 2, (uint16_t)sent[p]);
                rig_send_ack(pubs[p], MQTT_PUBREL, (uint16_t)sent[p]);
            }
            break;
        case 3:
            if (one->client && check_random_chance(&random, 1, 12)) {
                rig_break(one->client);
                one->client = NULL;
            }
            break;
        case 4:
            if (!one->client && check_random_chance(&random, 1, 12)) {
                rig_settle(rig);
                one->client = rig_connect(rig, one->id, MQTT_V5, false);
            }
            break;
        case 5:
            if (check_random_chance(&random, 1, 10))
                rig_checkpoint(rig);
            break;
        case 6:
            rig_read_max(rig, (uint32_t)check_random_below(&random, 6));
            break;
        case 7:
        case 8:
            if (one->client)
                receive(one);
            break;
        default:
            rig_step(rig);
            break;
        }
        while (rig_next(pubs[p]))
            continue;
    }
    for (unsigned i = 0; i < SUBSCRIBERS; i++)
        if (!to[i].client)
            to[i].client = rig_connect(rig, to[i].id, MQTT_V5, false);
    for (int round = 0; round < 3000; round++) {
        rig_settle(rig);
        for (unsigned i = 0; i < SUBSCRIBERS; i++)
            receive(&to[i]);
        if (round % 20 == 0)
            rig_checkpoint(rig);
    }
    for (unsigned i = 0; i < SUBSCRIBERS; i++)
        for (unsigned p = 0; p < 2; p++)
            for (unsigned number = 1; number <= sent[p]; number++) {
                assert_true(to[i].got[p][number] >= 1);
                assert_true(to[i].qos == 1 || to[i].got[p][number] == 1);
            }
    struct record rec;
    struct record_recipient recipient;
    rig_checkpoint(rig);
    rig_published(rig, &rec, 0);
    for (struct span rest = rec.recipients; record_recipient_next(&recipient, &rest) == ERR_OK;)
        assert_int_equal(memory_store_want_count(rig_store(rig), recipient.session), 0);
    assert_true(sent[0] > 300);
    free(to);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sessions_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
