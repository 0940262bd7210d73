/* Wills: when they go out, and when not. Scenarios named by the MQTT statements they would break with, each with one shard, with three,
 * and with three shards whose messages to each other come in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static struct rig_client *watch(struct rig *rig, uint8_t qos)
{
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", qos);
    return watcher;
}

static void will_goes_out_when_the_connection_breaks(void **state) /* 3.1.2-8, 3.1.2-14 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = watch(rig, 2);
    struct packet connect = will_packet("a", 0, 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_break(client);
    rig_settle(rig);
    expect_publish(watcher, "w", "gone", 1, 0);
    expect_nothing(watcher); /* 3.1.2-10: once */
    rig_free(rig);
}

static void will_is_discarded_by_disconnect_0_only(void **state) /* 3.14.4-3 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = watch(rig, 1);
    struct packet connect = will_packet("a", 0, 100);
    struct rig_client *client = rig_connect_with(rig, &connect);
    leave(rig, client);
    rig_advance(rig, 200000);
    expect_nothing(watcher);
    client = rig_connect_with(rig, &connect);
    send_disconnect(client, MQTT_REASON_DISCONNECT_WITH_WILL);
    rig_settle(rig);
    assert_true(rig_is_closed(client));
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_waits_for_its_delay(void **state) /* 3.1.3-9, 3.1.2-8 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = watch(rig, 1);
    struct packet connect = will_packet("a", 10, 100);
    rig_break(rig_connect_with(rig, &connect));
    rig_advance(rig, 9000);
    expect_nothing(watcher);
    struct rig_client *client = rig_connect_with(rig, &connect); /* back in time */
    rig_advance(rig, 50000);
    expect_nothing(watcher);
    rig_break(client);
    rig_advance(rig, 9500);
    expect_nothing(watcher);
    rig_advance(rig, 1000);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_advance(rig, 1000000);
    expect_nothing(watcher);
    rig_free(rig);
}

static void will_goes_out_at_the_sessions_end(void **state) /* 3.1.2-8: whichever is first */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = watch(rig, 1);
    struct packet connect = will_packet("a", 1000, 10);
    rig_break(rig_connect_with(rig, &connect));
    rig_advance(rig, 10500);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_send_ack(watcher, MQTT_PUBACK, 1);
    connect = will_packet("b", 1000, 5000);
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    expect_nothing(watcher);
    connect.connect.clean_start = true; /* ends the session */
    connect.connect.has_will = false;
    rig_connect_with(rig, &connect);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_goes_out_on_takeover(void **state) /* 3.1.2-8 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = watch(rig, 1);
    struct packet connect = will_packet("a", 0, 100);
    rig_connect_with(rig, &connect);
    connect.connect.has_will = false;
    rig_connect_with(rig, &connect);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_may_be_retained_with_properties(void **state) /* 3.1.2-15, 3.1.3-10 */
{
    struct rig *rig = RIG();
    struct packet connect = will_packet("a", 0, 0);
    uint8_t user[64];
    size_t size = properties_put_user_property(user, SPAN_LITERAL("k1"), SPAN_LITERAL("v1"));
    size += properties_put_user_property(user + size, SPAN_LITERAL("k0"), SPAN_LITERAL("v0"));
    connect.connect.will_retain = true;
    connect.connect.will_properties.raw = span_of(user, size);
    connect.connect.will_properties.user_property_count = 2;
    connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(USER_PROPERTY);
    connect.connect.will_properties.message_expiry_interval_s = 60;
    connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL);
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    struct rig_client *watcher = watch(rig, 1);
    const struct packet_publish *publish = expect_publish(watcher, "w", "gone", 1, RETAIN);
    assert_int_equal(publish->properties.user_property_count, 2);
    assert_int_equal(publish->properties.message_expiry_interval_s, 60);
    struct span rest = publish->properties.raw, name, value;
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(name, "k1");
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(value, "v0");
    rig_free(rig);
}

static void will_waits_for_room_in_the_log(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = will_packet("a", 0, 0);
    connect.connect.will_topic = span_of_string("t/a/will");
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_break(client);
    rig_advance(rig, 1000);
    assert_int_equal(rig_published_count(rig), 0);
    rig_log_room(rig, true);
    rig_advance(rig, 1000);
    assert_int_equal(rig_published_count(rig), 1);
    struct record rec;
    rig_published(rig, &rec, 0);
    expect_text(rec.payload, "gone");
    assert_true(rec.will_session != 0);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(will_goes_out_when_the_connection_breaks),
        IN_EACH_MODE(will_is_discarded_by_disconnect_0_only),
        IN_EACH_MODE(will_waits_for_its_delay),
        IN_EACH_MODE(will_goes_out_at_the_sessions_end),
        IN_EACH_MODE(will_goes_out_on_takeover),
        IN_EACH_MODE(will_may_be_retained_with_properties),
        IN_EACH_MODE(will_waits_for_room_in_the_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
