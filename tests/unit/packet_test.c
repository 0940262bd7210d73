/* The packet codec against bytes written by hand, against random packets there and back, and against every truncation. */
#include "broker/mqtt/packet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"
#include "tests/lib/packet_equal.h"
#include "tests/lib/wire.h"

#define OK 0
#define C MQTT_FROM_CLIENT
#define S MQTT_FROM_SERVER

struct packet_case {
    const char *name;
    enum mqtt_version version; /* of the connection; CONNECT: the version it must be read as */
    enum mqtt_sender sender;
    const char *notation; /* see tests/lib/wire.h */
    unsigned reason;      /* OK or the reason of MQTT_BAD */
};

static const struct packet_case connect_cases[] = {
    {"3.1 least", MQTT_V31, C, "10 | s'MQIsdp' 03 02 003c s'c'", OK},
    {"3.1.1 least", MQTT_V311, C, "10 | s'MQTT' 04 02 003c s'c'", OK},
    {"5 least", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p() s'c'", OK},
    {"3.1.1 full", MQTT_V311, C, "10 | s'MQTT' 04 f6 ffff s'id' s'w/t' s'gone' s'user' s'pass'", OK},
    {"5 full", MQTT_V5, C,
     "10 | s'MQTT' 05 ec 0000 p( 11 ffffffff 26 s'a' s'b' ) s'id' p( 18 00000005 26 s'c' s'd' ) s'w' 0003 00ff00 s'u' 0002 00ff", OK},
    {"MQTT-3.1.3-6 empty client id is left to the session", MQTT_V311, C, "10 | s'MQTT' 04 00 003c 0000", OK},
    {"MQTT-3.1.0-1 nothing", MQTT_V5, C, "10 |", 0x81},
    {"MQTT-3.1.2-1 other name", MQTT_V5, C, "10 | s'HTTP' 05 02 003c p() s'c'", 0x84},
    {"MQTT-3.1.2-1 name cut short", MQTT_V5, C, "10 | 0004 'MQT'", 0x81},
    {"MQTT-3.1.2-1 name in lower case", MQTT_V5, C, "10 | s'mqtt' 05 02 003c p() s'c'", 0x84},
    {"MQTT-3.1.2-1 other name with level 4 is answered as 3.1.1", MQTT_V311, C, "10 | s'MQXX' 04 02 003c s'c'", 0x84},
    {"MQTT-3.1.2-2 level 6", MQTT_V5, C, "10 | s'MQTT' 06 02 003c p() s'c'", 0x84},
    {"MQTT-3.1.2-2 level 3 of MQTT, which no version knows", MQTT_V5, C, "10 | s'MQTT' 03 02 003c s'c'", 0x84},
    {"MQTT-3.1.2-2 level 4 of MQIsdp is answered as 3.1", MQTT_V31, C, "10 | s'MQIsdp' 04 02 003c s'c'", 0x84},
    {"MQTT-3.1.2-2 bridge level is answered as 3.1.1", MQTT_V311, C, "10 | s'MQTT' 84 02 003c s'c'", 0x84},
    {"MQTT-3.1.2-2 level missing", MQTT_V5, C, "10 | s'MQTT'", 0x81},
    {"MQTT-2.1.3-1 fixed header flags", MQTT_V5, C, "11 | s'MQTT' 05 02 003c p() s'c'", 0x81},
    {"MQTT-2.2.2-2 of 3.1.1 fixed header flags", MQTT_V311, C, "18 | s'MQTT' 04 02 003c s'c'", 0x81},
    {"3.1 fixed header flags are not used", MQTT_V31, C, "18 | s'MQIsdp' 03 02 003c s'c'", OK},
    {"MQTT-3.1.2-3 reserved flag in 5", MQTT_V5, C, "10 | s'MQTT' 05 03 003c p() s'c'", 0x81},
    {"MQTT-3.1.2-3 reserved flag in 3.1.1", MQTT_V311, C, "10 | s'MQTT' 04 03 003c s'c'", 0x81},
    {"3.1 reserved flag is ignored", MQTT_V31, C, "10 | s'MQIsdp' 03 03 003c s'c'", OK},
    {"MQTT-3.1.2-9 will flag without will properties", MQTT_V5, C, "10 | s'MQTT' 05 06 003c p() s'c'", 0x81},
    {"MQTT-3.1.2-9 will flag without topic", MQTT_V311, C, "10 | s'MQTT' 04 06 003c s'c'", 0x81},
    {"MQTT-3.1.2-9 will flag without payload", MQTT_V5, C, "10 | s'MQTT' 05 06 003c p() s'c' p() s'w'", 0x81},
    {"MQTT-3.1.2-11 will QoS without will in 5", MQTT_V5, C, "10 | s'MQTT' 05 0a 003c p() s'c'", 0x81},
    {"MQTT-3.1.2-11 will QoS without will in 3.1.1", MQTT_V311, C, "10 | s'MQTT' 04 0a 003c s'c'", 0x81},
    {"MQTT-3.1.2-12 will QoS 3", MQTT_V5, C, "10 | s'MQTT' 05 1e 003c p() s'c' p() s'w' 0000", 0x81},
    {"3.1 will QoS 3", MQTT_V31, C, "10 | s'MQIsdp' 03 1e 003c s'c' s'w' 0000", 0x81},
    {"MQTT-3.1.2-13 will retain without will", MQTT_V5, C, "10 | s'MQTT' 05 22 003c p() s'c'", 0x81},
    {"MQTT-3.1.2-13 will retain without will in 3.1.1", MQTT_V311, C, "10 | s'MQTT' 04 22 003c s'c'", 0x81},
    {"MQTT-3.1.2-16 user name without its flag", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p() s'c' s'user'", 0x81},
    {"MQTT-3.1.2-17 flag without user name", MQTT_V5, C, "10 | s'MQTT' 05 82 003c p() s'c'", 0x81},
    {"MQTT-3.1.2-17 flag without user name in 3.1.1", MQTT_V311, C, "10 | s'MQTT' 04 82 003c s'c'", 0x81},
    {"3.1 flag without user name is allowed", MQTT_V31, C, "10 | s'MQIsdp' 03 c2 003c s'c'", OK},
    {"3.1 flag without password is allowed", MQTT_V31, C, "10 | s'MQIsdp' 03 c2 003c s'c' s'u'", OK},
    {"3.1 user name cut short", MQTT_V31, C, "10 | s'MQIsdp' 03 82 003c s'c' 0002 75", 0x81},
    {"MQTT-3.1.2-18 password without its flag", MQTT_V311, C, "10 | s'MQTT' 04 82 003c s'c' s'u' s'p'", 0x81},
    {"MQTT-3.1.2-19 flag without password", MQTT_V5, C, "10 | s'MQTT' 05 c2 003c p() s'c' s'u'", 0x81},
    {"MQTT-3.1.2-22 of 3.1.1 password without user name", MQTT_V311, C, "10 | s'MQTT' 04 42 003c s'c' s'p'", 0x81},
    {"3.1 password without user name", MQTT_V31, C, "10 | s'MQIsdp' 03 42 003c s'c' s'p'", 0x81},
    {"5 password without user name is allowed", MQTT_V5, C, "10 | s'MQTT' 05 42 003c p() s'c' s'p'", OK},
    {"MQTT-3.1.3-3 no client id", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p()", 0x81},
    {"MQTT-3.1.3-4 client id not UTF-8", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p() 0001 ff", 0x81},
    {"MQTT-1.5.4-2 client id with U+0000", MQTT_V311, C, "10 | s'MQTT' 04 02 003c 0001 00", 0x81},
    {"MQTT-3.1.3-11 will topic not UTF-8", MQTT_V5, C, "10 | s'MQTT' 05 06 003c p() s'c' p() 0001 ff 0000", 0x81},
    {"MQTT-4.7.0-1 will topic with a wildcard", MQTT_V5, C, "10 | s'MQTT' 05 06 003c p() s'c' p() s'a/#' 0000", 0x90},
    {"MQTT-4.7.3-1 will topic empty", MQTT_V311, C, "10 | s'MQTT' 04 06 003c s'c' 0000 0000", 0x90},
    {"MQTT-3.1.3-12 user name not UTF-8", MQTT_V5, C, "10 | s'MQTT' 05 82 003c p() s'c' 0002 c328", 0x81},
    {"MQTT-3.1.4-1 session expiry twice", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p( 11 00000001 11 00000001 ) s'c'", 0x82},
    {"MQTT-3.1.4-1 keep alive missing", MQTT_V5, C, "10 | s'MQTT' 05 02 00", 0x81},
    {"authentication data without method", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p( 16 0000 ) s'c'", 0x82},
    {"will delay among CONNECT's own properties", MQTT_V5, C, "10 | s'MQTT' 05 02 003c p( 18 00000001 ) s'c'", 0x81},
    {"topic alias in a will", MQTT_V5, C, "10 | s'MQTT' 05 06 003c p() s'c' p( 23 0001 ) s'w' 0000", 0x81},
    {"CONNECT from a server", MQTT_V5, S, "10 | s'MQTT' 05 02 003c p() s'c'", 0x82},
};

static const struct packet_case cases[] = {
    {"3.1.1 CONNACK", MQTT_V311, S, "20 | 01 00", OK},
    {"3.1.1 CONNACK refused", MQTT_V311, S, "20 | 00 05", OK},
    {"3.1 CONNACK", MQTT_V31, S, "20 | 00 04", OK},
    {"5 CONNACK", MQTT_V5, S, "20 | 01 00 p( 12 s'x' 21 0010 24 01 )", OK},
    {"5 CONNACK refused", MQTT_V5, S, "20 | 00 87 p( 1f s'no' )", OK},
    {"MQTT-3.2.2-1 reserved CONNACK flags", MQTT_V5, S, "20 | 02 00 p()", 0x81},
    {"MQTT-3.2.2-6 session present with an error", MQTT_V5, S, "20 | 01 87 p()", 0x82},
    {"MQTT-3.2.2-8 undefined connect code", MQTT_V5, S, "20 | 00 92 p()", 0x82},
    {"MQTT-3.2.2-6 of 3.1.1 undefined return code", MQTT_V311, S, "20 | 00 06", 0x82},
    {"CONNACK cut short", MQTT_V311, S, "20 | 00", 0x81},
    {"CONNACK with more", MQTT_V311, S, "20 | 00 00 00", 0x81},
    {"MQTT-2.2.2-1 CONNACK without property length", MQTT_V5, S, "20 | 00 00", 0x81},
    {"CONNACK from a client", MQTT_V5, C, "20 | 00 00 p()", 0x82},

    {"QoS 0 PUBLISH", MQTT_V311, C, "30 | s'a/b' 'hello'", OK},
    {"QoS 1 PUBLISH", MQTT_V311, C, "32 | s'a/b' 000a 'hello'", OK},
    {"QoS 2 PUBLISH, resent, retained", MQTT_V31, C, "3d | s'a' ffff 'x'", OK},
    {"PUBLISH without payload", MQTT_V311, C, "31 | s'a'", OK},
    {"5 PUBLISH", MQTT_V5, C, "32 | s'a/b' 0001 p( 01 01 02 0000003c 26 s'k' s'v' ) 'hello'", OK},
    {"5 PUBLISH with a new alias", MQTT_V5, C, "30 | s'a' p( 23 0001 ) 'x'", OK},
    {"5 PUBLISH with an alias alone", MQTT_V5, C, "30 | 0000 p( 23 0001 ) 'x'", OK},
    {"5 PUBLISH with subscription identifiers from a server", MQTT_V5, S, "30 | s'a' p( 0b 01 0b 8001 0b 01 ) 'x'", OK},
    {"MQTT-3.3.1-4 QoS 3", MQTT_V5, C, "36 | s'a' 0001 p() 'x'", 0x81},
    {"MQTT-3.3.1-4 QoS 3 in 3.1", MQTT_V31, C, "36 | s'a' 0001 'x'", 0x81},
    {"MQTT-3.3.1-2 DUP with QoS 0", MQTT_V5, C, "38 | s'a' p() 'x'", 0x81},
    {"MQTT-3.3.1-2 DUP with QoS 0 in 3.1.1", MQTT_V311, C, "38 | s'a' 'x'", 0x81},
    {"MQTT-3.3.2-1 topic not UTF-8", MQTT_V5, C, "30 | 0001 ff p() 'x'", 0x81},
    {"MQTT-3.3.2-1 topic cut short", MQTT_V311, C, "30 | 0005 'abc'", 0x81},
    {"MQTT-3.3.2-1 topic missing", MQTT_V311, C, "30 |", 0x81},
    {"MQTT-3.3.2-2 topic with +", MQTT_V5, C, "30 | s'a/+' p() 'x'", 0x90},
    {"MQTT-3.3.2-2 topic with # in 3.1.1", MQTT_V311, C, "30 | s'#' 'x'", 0x90},
    {"MQTT-4.7.3-1 topic empty in 3.1.1", MQTT_V311, C, "30 | 0000 'x'", 0x90},
    {"MQTT-4.7.3-2 topic with U+0000", MQTT_V311, C, "30 | 0003 610061 'x'", 0x81},
    {"neither topic nor alias", MQTT_V5, C, "30 | 0000 p() 'x'", 0x82},
    {"MQTT-2.2.1-3 QoS 1 with identifier 0", MQTT_V5, C, "32 | s'a' 0000 p() 'x'", 0x82},
    {"MQTT-2.3.1-1 of 3.1.1 QoS 2 with identifier 0", MQTT_V311, C, "34 | s'a' 0000 'x'", 0x82},
    {"identifier missing", MQTT_V311, C, "32 | s'a' 00", 0x81},
    {"MQTT-3.3.2-8 alias 0", MQTT_V5, C, "30 | s'a' p( 23 0000 ) 'x'", 0x94},
    {"MQTT-3.3.2-13 response topic not UTF-8", MQTT_V5, C, "30 | s'a' p( 08 0001 ff ) 'x'", 0x81},
    {"MQTT-3.3.2-14 response topic with a wildcard", MQTT_V5, C, "30 | s'a' p( 08 s'+' ) 'x'", 0x82},
    {"MQTT-3.3.4-6 subscription identifier from a client", MQTT_V5, C, "30 | s'a' p( 0b 01 ) 'x'", 0x82},
    {"MQTT-2.2.2-1 PUBLISH without property length", MQTT_V5, C, "30 | s'a'", 0x81},
    {"5 PUBLISH, properties longer than the packet", MQTT_V5, C, "30 | s'a' 09 01", 0x81},

    {"PUBACK", MQTT_V311, C, "40 | 0001", OK},
    {"5 PUBACK in short", MQTT_V5, C, "40 | 0001", OK},
    {"5 PUBACK with a reason", MQTT_V5, C, "40 | 0001 10", OK},
    {"5 PUBACK with properties", MQTT_V5, C, "40 | 0001 80 p( 1f s'why' 26 s'a' s'b' )", OK},
    {"PUBREC", MQTT_V31, C, "50 | 1234", OK},
    {"PUBREL", MQTT_V311, C, "62 | 1234", OK},
    {"5 PUBREL not found", MQTT_V5, C, "62 | 1234 92", OK},
    {"PUBCOMP", MQTT_V5, S, "70 | 1234", OK},
    {"MQTT-2.1.3-1 PUBACK flags", MQTT_V5, C, "41 | 0001", 0x81},
    {"MQTT-2.2.2-2 of 3.1.1 PUBREC flags", MQTT_V311, C, "52 | 0001", 0x81},
    {"3.1 PUBACK flags are not used", MQTT_V31, C, "4f | 0001", OK},
    {"MQTT-3.6.1-1 PUBREL flags 0", MQTT_V5, C, "60 | 0001", 0x81},
    {"MQTT-3.6.1-1 of 3.1.1 PUBREL flags 0", MQTT_V311, C, "60 | 0001", 0x81},
    {"MQTT-3.6.1-1 PUBREL flags 0 in 3.1", MQTT_V31, C, "60 | 0001", 0x81},
    {"MQTT-3.6.1-1 PUBREL with DUP in 3.1.1", MQTT_V311, C, "6a | 0001", 0x81},
    {"3.1 PUBREL resent with DUP", MQTT_V31, C, "6a | 0001", OK},
    {"MQTT-3.4.2-1 PUBACK with a code of others", MQTT_V5, C, "40 | 0001 92", 0x82},
    {"MQTT-3.5.2-1 PUBREC with a code of others", MQTT_V5, C, "50 | 0001 01", 0x82},
    {"MQTT-3.6.2-1 PUBREL 0x91", MQTT_V5, C, "62 | 0001 91", 0x82},
    {"MQTT-3.7.2-1 PUBCOMP 0x80", MQTT_V5, C, "70 | 0001 80", 0x82},
    {"acknowledgement of identifier 0", MQTT_V311, C, "40 | 0000", 0x82},
    {"acknowledgement cut short", MQTT_V311, C, "40 | 00", 0x81},
    {"acknowledgement without anything", MQTT_V5, C, "40 |", 0x81},
    {"3.1.1 acknowledgement with more", MQTT_V311, C, "40 | 0001 00", 0x81},
    {"5 acknowledgement with more", MQTT_V5, C, "40 | 0001 00 p() 00", 0x81},
    {"5 acknowledgement, properties cut short", MQTT_V5, C, "40 | 0001 00 05 1f", 0x81},

    {"SUBSCRIBE", MQTT_V311, C, "82 | 0001 s'a/#' 02 s'b' 00", OK},
    {"5 SUBSCRIBE with every option", MQTT_V5, C, "82 | 0001 p( 0b 05 26 s'k' s'v' ) s'a/#' 2e s'$share/g/b' 11", OK},
    {"MQTT-3.8.1-1 SUBSCRIBE flags 0", MQTT_V5, C, "80 | 0001 p() s'a' 00", 0x81},
    {"MQTT-3.8.1-1 of 3.1.1 SUBSCRIBE flags 0", MQTT_V311, C, "80 | 0001 s'a' 00", 0x81},
    {"MQTT-3.8.1-1 SUBSCRIBE flags 0 in 3.1", MQTT_V31, C, "80 | 0001 s'a' 00", 0x81},
    {"3.1 SUBSCRIBE resent with DUP", MQTT_V31, C, "8a | 0001 s'a' 00", OK},
    {"MQTT-2.2.1-3 SUBSCRIBE with identifier 0", MQTT_V5, C, "82 | 0000 p() s'a' 00", 0x82},
    {"MQTT-3.8.3-1 filter not UTF-8", MQTT_V5, C, "82 | 0001 p() 0001 ff 00", 0x81},
    {"MQTT-3.8.3-2 no filter", MQTT_V5, C, "82 | 0001 p()", 0x82},
    {"MQTT-3.8.3-3 of 3.1.1 no filter", MQTT_V311, C, "82 | 0001", 0x82},
    {"MQTT-3.8.3-4 No Local on a shared subscription", MQTT_V5, C, "82 | 0001 p() s'$share/g/a' 04", 0x82},
    {"MQTT-3.8.3-5 reserved option bit 6", MQTT_V5, C, "82 | 0001 p() s'a' 40", 0x81},
    {"MQTT-3.8.3-5 reserved option bit 7", MQTT_V5, C, "82 | 0001 p() s'a' 80", 0x81},
    {"MQTT-3-8.3-4 of 3.1.1 reserved bits", MQTT_V311, C, "82 | 0001 s'a' 04", 0x81},
    {"MQTT-3-8.3-4 of 3.1.1 QoS 3", MQTT_V311, C, "82 | 0001 s'a' 03", 0x82},
    {"5 QoS 3 in SUBSCRIBE", MQTT_V5, C, "82 | 0001 p() s'a' 03", 0x82},
    {"5 retain handling 3", MQTT_V5, C, "82 | 0001 p() s'a' 30", 0x82},
    {"MQTT-4.7.1-1 # in the middle, second filter", MQTT_V5, C, "82 | 0001 p() s'a' 00 s'a/#/b' 00", 0x8f},
    {"MQTT-4.7.1-2 + beside text", MQTT_V311, C, "82 | 0001 s'a+' 00", 0x8f},
    {"MQTT-4.7.3-1 filter empty", MQTT_V5, C, "82 | 0001 p() 0000 00", 0x8f},
    {"MQTT-4.8.2-1 share without a name", MQTT_V5, C, "82 | 0001 p() s'$share//a' 00", 0x8f},
    {"MQTT-4.8.2-2 share name with a wildcard", MQTT_V5, C, "82 | 0001 p() s'$share/+/a' 00", 0x8f},
    {"MQTT-4.8.2-2 share without a filter", MQTT_V5, C, "82 | 0001 p() s'$share/g' 00", 0x8f},
    {"options missing", MQTT_V311, C, "82 | 0001 s'a'", 0x81},
    {"two subscription identifiers in SUBSCRIBE", MQTT_V5, C, "82 | 0001 p( 0b 01 0b 02 ) s'a' 00", 0x82},
    {"SUBSCRIBE from a server", MQTT_V311, S, "82 | 0001 s'a' 00", 0x82},

    {"SUBACK", MQTT_V311, S, "90 | 0001 00 01 02 80", OK},
    {"5 SUBACK", MQTT_V5, S, "90 | 0001 p( 1f s'why' ) 02 87", OK},
    {"MQTT-3.9.3-2 SUBACK with an undefined code", MQTT_V5, S, "90 | 0001 p() 03", 0x82},
    {"MQTT-3.9.3-2 of 3.1.1 SUBACK with an undefined code", MQTT_V311, S, "90 | 0001 87", 0x82},
    {"MQTT-3.9.3-2 of 3.1.1 SUBACK with code 3", MQTT_V311, S, "90 | 0001 03", 0x82},
    {"MQTT-3.8.4-6 SUBACK without a code", MQTT_V311, S, "90 | 0001", 0x81},
    {"SUBACK from a client", MQTT_V311, C, "90 | 0001 00", 0x82},

    {"UNSUBSCRIBE", MQTT_V311, C, "a2 | 0001 s'a/#' s'b'", OK},
    {"5 UNSUBSCRIBE", MQTT_V5, C, "a2 | 0001 p( 26 s'k' s'v' ) s'a/#'", OK},
    {"MQTT-3.10.1-1 UNSUBSCRIBE flags 0", MQTT_V5, C, "a0 | 0001 p() s'a'", 0x81},
    {"MQTT-3.10.1-1 UNSUBSCRIBE flags 0 in 3.1", MQTT_V31, C, "a0 | 0001 s'a'", 0x81},
    {"MQTT-2.2.1-3 UNSUBSCRIBE with identifier 0", MQTT_V311, C, "a2 | 0000 s'a'", 0x82},
    {"MQTT-3.10.3-1 filter not UTF-8", MQTT_V5, C, "a2 | 0001 p() 0001 ff", 0x81},
    {"MQTT-3.10.3-2 no filter", MQTT_V5, C, "a2 | 0001 p()", 0x82},
    {"MQTT-3.10.3-2 of 3.1.1 no filter", MQTT_V311, C, "a2 | 0001", 0x82},
    {"MQTT-4.7.1-1 UNSUBSCRIBE a#", MQTT_V5, C, "a2 | 0001 p() s'a#'", 0x8f},
    {"UNSUBSCRIBE cut short", MQTT_V311, C, "a2 | 0001 0002 61", 0x81},
    {"UNSUBACK", MQTT_V311, S, "b0 | 0001", OK},
    {"5 UNSUBACK", MQTT_V5, S, "b0 | 0001 p() 00 11", OK},
    {"MQTT-3.11.3-2 UNSUBACK with an undefined code", MQTT_V5, S, "b0 | 0001 p() 01", 0x82},
    {"3.1.1 UNSUBACK with more", MQTT_V311, S, "b0 | 0001 00", 0x81},

    {"PINGREQ", MQTT_V311, C, "c0 |", OK},
    {"PINGRESP", MQTT_V5, S, "d0 |", OK},
    {"MQTT-2.1.3-1 PINGREQ flags", MQTT_V5, C, "c1 |", 0x81},
    {"PINGREQ with a body", MQTT_V5, C, "c0 | 00", 0x81},
    {"PINGRESP from a client", MQTT_V5, C, "d0 |", 0x82},
    {"PINGREQ from a server", MQTT_V5, S, "c0 |", 0x82},

    {"DISCONNECT", MQTT_V311, C, "e0 |", OK},
    {"5 DISCONNECT in short", MQTT_V5, C, "e0 |", OK},
    {"5 DISCONNECT with will", MQTT_V5, C, "e0 | 04", OK},
    {"5 DISCONNECT with session expiry", MQTT_V5, C, "e0 | 00 p( 11 0000000a )", OK},
    {"5 DISCONNECT from a server", MQTT_V5, S, "e0 | 8e p( 1c s'there' 1f s'you again' )", OK},
    {"MQTT-3.14.1-1 DISCONNECT flags", MQTT_V5, C, "e1 |", 0x81},
    {"MQTT-3.14.1-1 of 3.1.1 DISCONNECT flags", MQTT_V311, C, "e2 |", 0x81},
    {"MQTT-3.14.2-1 code of a server", MQTT_V5, C, "e0 | 8e", 0x82},
    {"MQTT-3.14.2-1 code of others", MQTT_V5, C, "e0 | 92", 0x82},
    {"MQTT-3.14.2-2 session expiry from a server", MQTT_V5, S, "e0 | 00 p( 11 0000000a )", 0x82},
    {"3.1.1 DISCONNECT with a body", MQTT_V311, C, "e0 | 00", 0x81},
    {"3.1.1 DISCONNECT from a server", MQTT_V311, S, "e0 |", 0x82},
    {"5 DISCONNECT with more", MQTT_V5, C, "e0 | 00 p() 00", 0x81},

    {"5 AUTH", MQTT_V5, C, "f0 | 18 p( 15 s'SCRAM' 16 0002 0102 )", OK},
    {"5 AUTH again", MQTT_V5, C, "f0 | 19 p( 15 s'SCRAM' )", OK},
    {"5 AUTH success in short", MQTT_V5, S, "f0 |", OK},
    {"MQTT-3.15.1-1 AUTH flags", MQTT_V5, C, "f1 | 18 p( 15 s'SCRAM' )", 0x81},
    {"MQTT-3.15.2-1 AUTH success from a client", MQTT_V5, C, "f0 |", 0x82},
    {"MQTT-3.15.2-1 AUTH 0x19 from a server", MQTT_V5, S, "f0 | 19 p( 15 s'SCRAM' )", 0x82},
    {"MQTT-4.12.0-5 AUTH without a method", MQTT_V5, C, "f0 | 18 p()", 0x82},
    {"MQTT-4.12.0-5 AUTH without properties", MQTT_V5, C, "f0 | 18", 0x82},
    {"AUTH below 5", MQTT_V311, C, "f0 |", 0x81},
    {"AUTH below 5 in 3.1", MQTT_V31, C, "f0 |", 0x81},
};

/* A packet in memory that ends where it ends. */
struct exact {
    uint8_t *data;
    uint32_t size;
};

static struct exact exact_of(const uint8_t *data, size_t size)
{
    struct exact exact = {malloc(size ? size : 1), (uint32_t)size};
    memcpy(exact.data, data, size);
    return exact;
}

static struct mqtt_verdict decode(struct packet *out, enum mqtt_version version, enum mqtt_sender sender, const struct exact *exact)
{
    struct frame frame;
    enum frame_result result = frame_parse(&frame, exact->data, exact->size, FRAME_SIZE_MAX);
    assert_int_equal(result, FRAME_OK);
    assert_int_equal(frame.size, exact->size);
    return packet_decode(out, version, sender, &frame, exact->data);
}

/* A decoded packet, encoded and decoded again, must be the same, and its encoding must not be longer than the one it came in. */
static void check_again(const char *name, const struct packet *packet, enum mqtt_version version, enum mqtt_sender sender, uint32_t size_in)
{
    uint32_t size = packet_encode_size(packet, version, UINT32_MAX);
    if (size == 0 || size > size_in)
        fail_msg("%s: encodes to %u bytes from %u", name, size, size_in);
    struct exact again = {malloc(size), size};
    assert_int_equal(packet_encode(again.data, packet, version, UINT32_MAX), size);
    assert_int_equal(packet_encode_size(packet, version, size), size);
    struct packet back;
    struct mqtt_verdict verdict = decode(&back, version, sender, &again);
    if (verdict.judgement != MQTT_OK)
        fail_msg("%s: own encoding is refused: %s", name, verdict.text);
    const char *differ = packet_differ(packet, &back);
    if (differ)
        fail_msg("%s: %s differs after encoding and decoding", name, differ);
    free(again.data);
}

/* Nothing before the last byte is a packet, and no announced length makes the decoder read past its memory. */
static void check_truncated(const char *name, enum mqtt_version version, enum mqtt_sender sender, const struct exact *whole)
{
    struct frame frame;
    for (uint32_t cut = 0; cut < whole->size; cut++) {
        struct exact part = exact_of(whole->data, cut);
        if (frame_parse(&frame, part.data, part.size, FRAME_SIZE_MAX) != FRAME_MORE)
            fail_msg("%s: %u of %u bytes taken for a packet", name, cut, whole->size);
        free(part.data);
    }
    assert_int_equal(frame_parse(&frame, whole->data, whole->size, FRAME_SIZE_MAX), FRAME_OK);
    for (uint32_t body_size = 0; body_size < frame.remaining_size; body_size++) {
        uint8_t header[FRAME_HEADER_SIZE_MAX];
        size_t header_size = frame_put(header, frame.type, frame.flags, body_size);
        struct exact shorter = {malloc(header_size + body_size), (uint32_t)(header_size + body_size)};
        memcpy(shorter.data, header, header_size);
        memcpy(shorter.data + header_size, whole->data + frame.header_size, body_size);
        struct packet packet;
        if (decode(&packet, version, sender, &shorter).judgement == MQTT_OK)
            check_again(name, &packet, version, sender, shorter.size);
        struct frame shorter_frame;
        struct span client_id;
        assert_int_equal(frame_parse(&shorter_frame, shorter.data, shorter.size, FRAME_SIZE_MAX), FRAME_OK);
        if (packet_peek_client_id(&client_id, &shorter_frame, shorter.data))
            assert_true(client_id.data + client_id.size <= shorter.data + shorter.size);
        free(shorter.data);
    }
}

static void run_case(const struct packet_case *row)
{
    uint8_t bytes[1024];
    struct exact exact = exact_of(bytes, wire_bytes(bytes, row->notation));
    struct packet packet;
    bool is_connect = bytes[0] >> 4 == MQTT_CONNECT;
    struct mqtt_verdict verdict = decode(&packet, is_connect ? MQTT_V31 : row->version, row->sender, &exact);
    unsigned got = verdict.judgement == MQTT_OK ? OK : (unsigned)verdict.reason;
    if (got != row->reason)
        fail_msg("%s: 0x%02x (%s), expected 0x%02x", row->name, got, verdict.text ? verdict.text : "ok", row->reason);
    if ((verdict.judgement == MQTT_OK) != (verdict.text == NULL))
        fail_msg("%s: a text exactly when it is bad", row->name);
    if (is_connect && packet.connect.version != row->version)
        fail_msg("%s: read as level %d, expected %d", row->name, packet.connect.version, row->version);
    if (verdict.judgement == MQTT_OK)
        check_again(row->name, &packet, row->version, row->sender, exact.size);
    check_truncated(row->name, row->version, row->sender, &exact);
    free(exact.data);
}

static void test_connect_by_hand(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof connect_cases / sizeof connect_cases[0]; i++)
        run_case(&connect_cases[i]);
}

static void test_packets_by_hand(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        run_case(&cases[i]);
}

/* Good cases without a longhand must come back byte by byte. */
static void test_encoding_gives_the_bytes_decoded(void **state)
{
    (void)state;
    static const char *const longhand[] = {"3.1 fixed header flags are not used", "3.1 PUBACK flags are not used",
                                           "3.1 PUBREL resent with DUP",          "3.1 SUBSCRIBE resent with DUP",
                                           "3.1 reserved flag is ignored",        "3.1 flag without user name is allowed",
                                           "3.1 flag without password is allowed"};
    unsigned compared = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] + sizeof connect_cases / sizeof connect_cases[0]; i++) {
        const size_t case_count = sizeof cases / sizeof cases[0];
        const struct packet_case *row = i < case_count ? &cases[i] : &connect_cases[i - case_count];
        bool skip = row->reason != OK;
        for (size_t k = 0; k < sizeof longhand / sizeof longhand[0]; k++)
            skip |= strcmp(row->name, longhand[k]) == 0;
        if (skip)
            continue;
        uint8_t bytes[1024];
        uint8_t again[1024];
        struct exact exact = exact_of(bytes, wire_bytes(bytes, row->notation));
        struct packet packet;
        assert_int_equal(decode(&packet, row->version, row->sender, &exact).judgement, MQTT_OK);
        if (packet_encode(again, &packet, row->version, UINT32_MAX) != exact.size || memcmp(again, exact.data, exact.size) != 0)
            fail_msg("%s: encodes to other bytes", row->name);
        free(exact.data);
        compared++;
    }
    assert_true(compared > 40);
}

static void test_connect_fields(void **state)
{
    (void)state;
    uint8_t bytes[256];
    struct exact exact = exact_of(
        bytes, wire_bytes(bytes, "10 | s'MQTT' 05 ee 0102 p( 11 0000000a ) s'id' p( 18 00000005 ) s'w/t' s'gone' s'user' 0002 00ff"));
    struct packet packet;
    assert_int_equal(decode(&packet, MQTT_V5, C, &exact).judgement, MQTT_OK);
    const struct packet_connect *connect = &packet.connect;
    assert_int_equal(connect->version, MQTT_V5);
    assert_true(connect->clean_start);
    assert_true(connect->has_will);
    assert_true(connect->will_retain);
    assert_int_equal(connect->will_qos, 1);
    assert_int_equal(connect->keep_alive_s, 0x0102);
    assert_true(span_equal(connect->client_id, SPAN_LITERAL("id")));
    assert_true(span_equal(connect->will_topic, SPAN_LITERAL("w/t")));
    assert_true(span_equal(connect->will_payload, SPAN_LITERAL("gone")));
    assert_true(connect->has_user_name && span_equal(connect->user_name, SPAN_LITERAL("user")));
    assert_true(connect->has_password && span_equal(connect->password, span_of("\0\xff", 2)));
    assert_int_equal(connect->properties.session_expiry_interval_s, 10);
    assert_int_equal(connect->will_properties.will_delay_interval_s, 5);
    free(exact.data);

    exact = exact_of(bytes, wire_bytes(bytes, "10 | s'MQIsdp' 03 c0 003c s'c'"));
    assert_int_equal(decode(&packet, MQTT_V5, C, &exact).judgement, MQTT_OK);
    assert_int_equal(connect->version, MQTT_V31);
    assert_false(connect->clean_start || connect->has_user_name || connect->has_password || connect->has_will);
    free(exact.data);
}

static void test_subscription_options(void **state)
{
    (void)state;
    uint8_t bytes[256];
    struct exact exact = exact_of(bytes, wire_bytes(bytes, "82 | 0102 p( 0b 07 ) s'a/+' 2e s'$share/g/b/#' 11 s'c' 00"));
    struct packet packet;
    assert_int_equal(decode(&packet, MQTT_V5, C, &exact).judgement, MQTT_OK);
    assert_int_equal(packet.subscribe.packet_id, 0x0102);
    assert_int_equal(packet.subscribe.filter_count, 3);
    assert_int_equal(packet.subscribe.properties.subscription_identifier, 7);
    struct span rest = packet.subscribe.filters;
    struct packet_subscription sub;
    assert_true(packet_subscribe_next(&rest, &sub));
    assert_true(span_equal(sub.text, SPAN_LITERAL("a/+")) && sub.filter.has_wildcard && !sub.filter.is_shared);
    assert_true(sub.qos == 2 && sub.no_local && sub.retain_as_published && sub.retain_handling == 2);
    assert_true(packet_subscribe_next(&rest, &sub));
    assert_true(span_equal(sub.filter.share_name, SPAN_LITERAL("g")) && span_equal(sub.filter.filter, SPAN_LITERAL("b/#")));
    assert_true(sub.qos == 1 && !sub.no_local && !sub.retain_as_published && sub.retain_handling == 1);
    assert_true(packet_subscribe_next(&rest, &sub));
    assert_true(span_equal(sub.text, SPAN_LITERAL("c")) && sub.qos == 0);
    assert_false(packet_subscribe_next(&rest, &sub));
    free(exact.data);

    exact = exact_of(bytes, wire_bytes(bytes, "a2 | 0102 s'a/+' s'c'"));
    assert_int_equal(decode(&packet, MQTT_V31, C, &exact).judgement, MQTT_OK);
    rest = packet.unsubscribe.filters;
    struct span filter;
    assert_true(packet_unsubscribe_next(&rest, &filter) && span_equal(filter, SPAN_LITERAL("a/+")));
    assert_true(packet_unsubscribe_next(&rest, &filter) && span_equal(filter, SPAN_LITERAL("c")));
    assert_false(packet_unsubscribe_next(&rest, &filter));
    free(exact.data);
}

static void peek(const char *notation, const char *expected)
{
    uint8_t bytes[256];
    struct exact exact = exact_of(bytes, wire_bytes(bytes, notation));
    struct frame frame;
    struct span client_id;
    assert_int_equal(frame_parse(&frame, exact.data, exact.size, FRAME_SIZE_MAX), FRAME_OK);
    bool found = packet_peek_client_id(&client_id, &frame, exact.data);
    if (found != (expected != NULL) || (found && !span_equal(client_id, span_of_string(expected))))
        fail_msg("%s: expected client id %s", notation, expected ? expected : "none");
    free(exact.data);
}

static void test_peeking_at_the_client_id(void **state)
{
    (void)state;
    peek("10 | s'MQIsdp' 03 02 003c s'car1'", "car1");
    peek("10 | s'MQTT' 04 02 003c s'car2'", "car2");
    peek("10 | s'MQTT' 05 02 003c p( 11 00000001 26 s'a' s'b' ) s'car3' ff", "car3");
    peek("10 | s'MQTT' 04 02 003c 0000", "");
    peek("10 | s'MQTT' 07 02 003c s'car2'", NULL);
    peek("10 | s'MQTT' 05 02 003c 7f 00", NULL);
    peek("10 | s'MQTT' 04 02 003c 0005 'car'", NULL);
    peek("c0 |", NULL);
}

static void encodes_to(const struct packet *packet, enum mqtt_version version, uint32_t size_max, const char *notation)
{
    uint8_t expected[512];
    uint8_t bytes[512];
    size_t expected_size = notation ? wire_bytes(expected, notation) : 0;
    uint32_t size = packet_encode_size(packet, version, size_max);
    if (size != expected_size)
        fail_msg("%s: %u bytes, expected %zu", notation ? notation : "nothing", size, expected_size);
    assert_int_equal(packet_encode(bytes, packet, version, size_max), size);
    assert_memory_equal(bytes, expected, size);
}

static void test_connack_in_each_version_s_form(void **state)
{
    (void)state;
    struct packet packet = {.type = MQTT_CONNACK};
    packet.connack.session_present = true;
    encodes_to(&packet, MQTT_V5, UINT32_MAX, "20 | 01 00 p()"); /* [MQTT-2.2.2-1] */
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "20 | 01 00");
    encodes_to(&packet, MQTT_V31, UINT32_MAX, "20 | 00 00"); /* 3.1 has no Session Present */
    packet.connack.reason = MQTT_REASON_UNSUPPORTED_PROTOCOL_VERSION;
    encodes_to(&packet, MQTT_V5, UINT32_MAX, "20 | 00 84 p()"); /* [MQTT-3.2.2-6] */
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "20 | 00 01");   /* [MQTT-3.1.2-2] of 3.1.1 */
    packet.connack.reason = MQTT_REASON_CLIENT_IDENTIFIER_NOT_VALID;
    encodes_to(&packet, MQTT_V31, UINT32_MAX, "20 | 00 02"); /* [MQTT-3.1.3-9] of 3.1.1 */
    packet.connack.reason = MQTT_REASON_SERVER_BUSY;
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "20 | 00 03");
    packet.connack.reason = MQTT_REASON_BAD_USER_NAME_OR_PASSWORD;
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "20 | 00 04");
    packet.connack.reason = MQTT_REASON_NOT_AUTHORIZED;
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "20 | 00 05");
    packet.connack.reason = MQTT_REASON_MALFORMED_PACKET; /* [MQTT-3.2.2-6] of 3.1.1: no fitting code */
    encodes_to(&packet, MQTT_V311, UINT32_MAX, NULL);
    assert_int_equal(packet_connack_return_code(MQTT_REASON_MALFORMED_PACKET), -1);
}

static void test_older_versions_leave_out_what_they_do_not_have(void **state)
{
    (void)state;
    struct packet packet = {.type = MQTT_SUBACK};
    packet.suback.packet_id = 7;
    packet.suback.codes = span_of("\x01\x87\x8f", 3);
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "90 | 0007 01 80 80"); /* [MQTT-3.9.3-2] of 3.1.1 */
    encodes_to(&packet, MQTT_V5, UINT32_MAX, "90 | 0007 p() 01 87 8f");
    packet.type = MQTT_UNSUBACK;
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "b0 | 0007");
    packet = (struct packet){.type = MQTT_PUBACK};
    packet.ack.packet_id = 7;
    packet.ack.reason = MQTT_REASON_QUOTA_EXCEEDED;
    encodes_to(&packet, MQTT_V311, UINT32_MAX, "40 | 0007");
    encodes_to(&packet, MQTT_V5, UINT32_MAX, "40 | 0007 97");
    packet = (struct packet){.type = MQTT_AUTH};
    encodes_to(&packet, MQTT_V311, UINT32_MAX, NULL);
}

static void test_reason_string_and_user_properties_give_way_MQTT_3_4_2_2_and_17_others(void **state)
{
    (void)state;
    uint8_t user[32];
    size_t user_size = properties_put_user_property(user, SPAN_LITERAL("k"), SPAN_LITERAL("v"));
    struct mqtt_properties props = {
        .present = MQTT_PROPERTY_BIT(REASON_STRING) | MQTT_PROPERTY_BIT(USER_PROPERTY),
        .raw = span_of(user, user_size),
        .reason_string = SPAN_LITERAL("why"),
    };
    struct packet packet = {.type = MQTT_PUBACK};
    packet.ack.packet_id = 1;
    packet.ack.reason = MQTT_REASON_NOT_AUTHORIZED;
    packet.ack.properties = props;
    encodes_to(&packet, MQTT_V5, 19, "40 | 0001 87 p( 1f s'why' 26 s'k' s'v' )");
    encodes_to(&packet, MQTT_V5, 18, "40 | 0001 87 p( 1f s'why' )");
    encodes_to(&packet, MQTT_V5, 12, "40 | 0001 87 p( 1f s'why' )");
    encodes_to(&packet, MQTT_V5, 11, "40 | 0001 87");
    encodes_to(&packet, MQTT_V5, 5, "40 | 0001 87");
    encodes_to(&packet, MQTT_V5, 4, NULL);

    packet = (struct packet){.type = MQTT_CONNACK};
    packet.connack.properties = props;
    packet.connack.properties.present |= MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM);
    packet.connack.properties.receive_maximum = 5;
    encodes_to(&packet, MQTT_V5, 14, "20 | 00 00 p( 1f s'why' 21 0005 )");
    encodes_to(&packet, MQTT_V5, 13, "20 | 00 00 p( 21 0005 )");
    packet = (struct packet){.type = MQTT_SUBACK};
    packet.suback.packet_id = 1;
    packet.suback.codes = span_of("\0", 1);
    packet.suback.properties = props;
    encodes_to(&packet, MQTT_V5, 6, "90 | 0001 p() 00");
    packet.type = MQTT_UNSUBACK;
    encodes_to(&packet, MQTT_V5, 6, "b0 | 0001 p() 00");
    packet = (struct packet){.type = MQTT_DISCONNECT};
    packet.disconnect.reason = MQTT_REASON_SESSION_TAKEN_OVER;
    packet.disconnect.properties = props;
    encodes_to(&packet, MQTT_V5, 10, "e0 | 8e p( 1f s'why' )");
    encodes_to(&packet, MQTT_V5, 9, "e0 | 8e");
    static const enum mqtt_packet_type acks[] = {MQTT_PUBREC, MQTT_PUBREL, MQTT_PUBCOMP};
    for (size_t i = 0; i < 3; i++) {
        packet = (struct packet){.type = acks[i]};
        packet.ack.packet_id = 1;
        packet.ack.properties = props;
        assert_int_equal(packet_encode_size(&packet, MQTT_V5, 12), 12);
        assert_int_equal(packet_encode_size(&packet, MQTT_V5, 11), 4);
    }
    packet = (struct packet){.type = MQTT_AUTH};
    packet.auth.reason = MQTT_REASON_CONTINUE_AUTHENTICATION;
    packet.auth.properties = props;
    packet.auth.properties.present |= MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD);
    packet.auth.properties.authentication_method = SPAN_LITERAL("X");
    encodes_to(&packet, MQTT_V5, 13, "f0 | 18 p( 15 s'X' )");
    /* A PUBLISH gives nothing away: it is sent whole or not at all [MQTT-3.1.2-24, -25]. */
    packet = (struct packet){.type = MQTT_PUBLISH};
    packet.publish.topic = SPAN_LITERAL("a");
    packet.publish.properties = props;
    packet.publish.properties.present = MQTT_PROPERTY_BIT(USER_PROPERTY);
    encodes_to(&packet, MQTT_V5, 13, "30 | s'a' p( 26 s'k' s'v' )");
    encodes_to(&packet, MQTT_V5, 12, NULL);
}

static void test_short_acknowledgements(void **state)
{
    (void)state;
    static const enum mqtt_packet_type types[] = {MQTT_PUBACK, MQTT_PUBREC, MQTT_PUBREL, MQTT_PUBCOMP};
    static const enum mqtt_version versions[] = {MQTT_V31, MQTT_V311, MQTT_V5};
    static const enum mqtt_reason reasons[] = {MQTT_REASON_SUCCESS, MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND};
    for (size_t i = 0; i < 4 * 3 * 2; i++) {
        struct packet packet = {.type = types[i % 4]};
        packet.ack.packet_id = 0x1234;
        packet.ack.reason = reasons[i / 12];
        enum mqtt_version version = versions[i / 4 % 3];
        uint8_t expected[16];
        uint8_t bytes[PACKET_ACK_SIZE_MAX];
        uint32_t expected_size = packet_encode(expected, &packet, version, UINT32_MAX);
        assert_int_equal(packet_put_ack(bytes, packet.type, version, 0x1234, packet.ack.reason), expected_size);
        assert_memory_equal(bytes, expected, expected_size);
    }
}

static void test_publish_heads(void **state)
{
    (void)state;
    uint8_t forwardable[32];
    size_t forwardable_size = wire_bytes(forwardable, "01 01 26 s'k' s'v'");
    static const uint32_t ids[] = {5, 300};
    struct packet_publish_head head = {
        .dup = true,
        .retain = true,
        .qos = 1,
        .packet_id = 0x0102,
        .payload_size = 5,
        .topic = SPAN_LITERAL("a/b"),
        .forward = {.forwardable = span_of(forwardable, forwardable_size),
                    .has_message_expiry = true,
                    .message_expiry_interval_s = 9,
                    .subscription_identifiers = ids,
                    .subscription_identifier_count = 2},
    };
    static const struct {
        enum mqtt_version version;
        uint8_t qos;
        const char *notation;
    } rows[] = {
        {MQTT_V5, 1, "3b | s'a/b' 0102 p( 02 00000009 0b 05 0b ac02 01 01 26 s'k' s'v' ) 'hello'"},
        {MQTT_V311, 1, "3b | s'a/b' 0102 'hello'"},
        {MQTT_V31, 1, "3b | s'a/b' 0102 'hello'"},
        {MQTT_V5, 0, "31 | s'a/b' p( 02 00000009 0b 05 0b ac02 01 01 26 s'k' s'v' ) 'hello'"},
        {MQTT_V311, 0, "31 | s'a/b' 'hello'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t expected[128];
        size_t expected_size = wire_bytes(expected, rows[i].notation);
        head.qos = rows[i].qos;
        head.dup = rows[i].qos != 0;
        uint32_t packet_size = 0;
        size_t size = packet_publish_head_size(&head, rows[i].version, &packet_size);
        assert_int_equal(packet_size, expected_size);
        assert_int_equal(size, expected_size - 5);
        uint8_t *exact = malloc(size);
        assert_int_equal(packet_publish_head_put(exact, &head, rows[i].version), size);
        assert_memory_equal(exact, expected, size);
        free(exact);
    }
    head.payload_size = MQTT_VARINT_MAX;
    assert_int_equal(packet_publish_head_size(&head, MQTT_V5, NULL), 0);
}

static void test_payloads_at_the_edges_of_the_length_field(void **state)
{
    (void)state;
    static const uint32_t remaining_sizes[] = {3, 127, 128, 16383, 16384, 2097151, 2097152};
    for (size_t i = 0; i < sizeof remaining_sizes / sizeof remaining_sizes[0]; i++) {
        struct packet packet = {.type = MQTT_PUBLISH};
        uint8_t *payload = calloc(1, remaining_sizes[i]);
        packet.publish.topic = SPAN_LITERAL("a");
        packet.publish.payload = span_of(payload, remaining_sizes[i] - 3);
        assert_int_equal(packet_encode_size(&packet, MQTT_V311, UINT32_MAX), frame_size(remaining_sizes[i]));
        check_again("payload", &packet, MQTT_V311, C, frame_size(remaining_sizes[i]));
        free(payload);
    }
}

/* ---- Random packets ---- */

struct generator {
    struct check_random random;
    uint8_t *arena; /* what spans point to */
    size_t used;
    size_t size;
};

static uint8_t *take(struct generator *gen, size_t size)
{
    assert_true(gen->used + size <= gen->size);
    uint8_t *at = gen->arena + gen->used;
    gen->used += size;
    return at;
}

static struct span random_binary(struct generator *gen, size_t size_max)
{
    size_t size = check_random_size(&gen->random, size_max);
    uint8_t *at = take(gen, size);
    check_random_fill(&gen->random, at, size);
    return span_of(at, size);
}

static struct span random_string(struct generator *gen, size_t size_min)
{
    static const char *const pieces[] = {"a", "B", "7", " ", "-", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x9a\x97", "/", "\x01"};
    size_t count = size_min + check_random_size(&gen->random, 20);
    uint8_t *at = gen->arena + gen->used;
    for (size_t i = 0; i < count; i++) {
        const char *piece = pieces[check_random_below(&gen->random, sizeof pieces / sizeof pieces[0])];
        memcpy(take(gen, strlen(piece)), piece, strlen(piece));
    }
    return span_of(at, (size_t)(gen->arena + gen->used - at));
}

static struct span random_filter(struct generator *gen)
{
    static const char *const filters[] = {"a", "#", "+", "a/+/b", "a/#", "$share/g/a/#", "/", "fleet/+/telemetry"};
    return check_random_chance(&gen->random, 1, 2)
               ? random_string(gen, 1)
               : span_of_string(filters[check_random_below(&gen->random, sizeof filters / sizeof filters[0])]);
}

/* Does the property come along? Only where the table lets it. */
static bool chosen(struct generator *gen, unsigned set, enum mqtt_packet_type type)
{
    return (set >> type & 1) && check_random_chance(&gen->random, 1, 3);
}

static struct mqtt_properties random_properties(struct generator *gen, enum mqtt_version version, enum mqtt_packet_type type,
                                                enum mqtt_sender sender)
{
    struct mqtt_properties props = {0};
    if (version != MQTT_V5 || check_random_chance(&gen->random, 1, 4))
        return props;
    struct check_random *random = &gen->random;
#define NONE 0
#define IN(packet) (1u << MQTT_##packet)
#define RULED_ANY(limit) check_random_below(random, limit)
#define RULED_BOOL(limit) check_random_below(random, 2)
#define RULED_NONZERO(limit) (1 + check_random_below(random, (limit)-1))
#define RULED_ALIAS(limit) (1 + check_random_below(random, (limit)-1))
#define TEXT_ANY random_string(gen, 0)
#define TEXT_TOPIC random_string(gen, 1)
#define SET_BYTE(field, rule) props.field = (uint8_t)RULED_##rule(2);
#define SET_U16(field, rule) props.field = (uint16_t)RULED_##rule(65536);
#define SET_U32(field, rule) props.field = (uint32_t)RULED_##rule(UINT64_C(1) << 32);
#define SET_VARINT(field, rule) props.field = (uint32_t)RULED_##rule(UINT64_C(1) << 28);
#define SET_STRING(field, rule) props.field = TEXT_##rule;
#define SET_BINARY(field, rule) props.field = random_binary(gen, 40);
#define SET_PAIR(field, rule) props.field = 1 + (uint32_t)check_random_below(random, 3);
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable)                                                   \
    if (chosen(gen, sender == MQTT_FROM_CLIENT ? (from_client) : (from_server), type)) {                                                   \
        props.present |= MQTT_PROPERTY_BIT(name);                                                                                          \
        SET_##kind(field, rule)                                                                                                            \
    }
#include "broker/mqtt/mqtt_spec.def"
#undef IN
#undef NONE
    /* A raw block with the user properties, and several identifiers in a server's PUBLISH. */
    uint32_t user_count = props.present & MQTT_PROPERTY_BIT(USER_PROPERTY) ? props.user_property_count : 0;
    props.user_property_count = user_count;
    bool has_identifier = (props.present & MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER)) != 0;
    props.subscription_identifier_count = has_identifier;
    struct span names[3];
    struct span values[3];
    for (uint32_t i = 0; i < user_count; i++) {
        names[i] = random_string(gen, 0);
        values[i] = random_string(gen, 0);
    }
    uint8_t *raw = take(gen, 4096);
    size_t raw_size = 0;
    if (has_identifier && type == MQTT_PUBLISH) {
        props.subscription_identifier_count = 1 + (uint32_t)check_random_below(random, 4);
        for (uint32_t i = 0; i < props.subscription_identifier_count; i++) {
            raw[raw_size++] = MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER;
            raw_size += mqtt_varint_put(raw + raw_size, i == 0 ? props.subscription_identifier : 1 + i * 100);
        }
    } else if (has_identifier) {
        raw[raw_size++] = MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER;
        raw_size += mqtt_varint_put(raw + raw_size, props.subscription_identifier);
    }
    for (uint32_t i = 0; i < user_count; i++)
        raw_size += properties_put_user_property(raw + raw_size, names[i], values[i]);
    props.raw = span_of(raw, raw_size);
    return props;
}

/* A reason code that the packet may carry. */
static enum mqtt_reason random_reason(struct generator *gen, enum mqtt_version version, enum mqtt_packet_type type, enum mqtt_sender sender)
{
    if (version != MQTT_V5)
        return MQTT_REASON_SUCCESS;
    for (;;) {
        unsigned code = (unsigned)check_random_below(&gen->random, 256);
        if (mqtt_reason_is_allowed(type, sender, code))
            return code;
    }
}

static void random_connect(struct generator *gen, struct packet_connect *out, enum mqtt_version version)
{
    struct check_random *random = &gen->random;
    out->version = version;
    out->clean_start = check_random_chance(random, 1, 2);
    out->keep_alive_s = (uint16_t)check_random_below(random, 65536);
    out->client_id = random_string(gen, 0);
    out->properties = random_properties(gen, version, MQTT_CONNECT, C);
    if (!(out->properties.present & MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD)))
        out->properties.present &= ~MQTT_PROPERTY_BIT(AUTHENTICATION_DATA);
    out->has_will = check_random_chance(random, 1, 2);
    if (out->has_will) {
        out->will_qos = (uint8_t)check_random_below(random, 3);
        out->will_retain = check_random_chance(random, 1, 2);
        out->will_topic = random_string(gen, 1);
        out->will_payload = random_binary(gen, 100);
        out->will_properties = random_properties(gen, version, MQTT_WILL, C);
    }
    out->has_user_name = check_random_chance(random, 1, 2);
    if (out->has_user_name)
        out->user_name = random_string(gen, 0);
    out->has_password = check_random_chance(random, 1, 2) && (out->has_user_name || version == MQTT_V5);
    if (out->has_password)
        out->password = random_binary(gen, 40);
}

static void random_packet(struct generator *gen, struct packet *out, enum mqtt_packet_type type, enum mqtt_version version,
                          enum mqtt_sender sender)
{
    struct check_random *random = &gen->random;
    uint16_t packet_id = (uint16_t)(1 + check_random_below(random, 65535));
    memset(out, 0, sizeof *out);
    out->type = type;
    switch (type) {
    case MQTT_CONNECT:
        random_connect(gen, &out->connect, version);
        break;
    case MQTT_CONNACK:
        out->connack.reason = random_reason(gen, version, type, sender);
        if (version != MQTT_V5) {
            static const enum mqtt_reason reasons[] = {0, 0x84, 0x85, 0x88, 0x86, 0x87};
            out->connack.reason = reasons[check_random_below(random, 6)];
        }
        out->connack.session_present = out->connack.reason == 0 && version != MQTT_V31 && check_random_chance(random, 1, 2);
        out->connack.properties = random_properties(gen, version, type, sender);
        break;
    case MQTT_PUBLISH:
        out->publish.qos = (uint8_t)check_random_below(random, 3);
        out->publish.dup = out->publish.qos != 0 && check_random_chance(random, 1, 2);
        out->publish.retain = check_random_chance(random, 1, 2);
        out->publish.packet_id = out->publish.qos != 0 ? packet_id : 0;
        out->publish.properties = random_properties(gen, version, type, sender);
        out->publish.topic = random_string(gen, out->publish.properties.present & MQTT_PROPERTY_BIT(TOPIC_ALIAS) ? 0 : 1);
        out->publish.payload = random_binary(gen, 400);
        break;
    case MQTT_PUBACK:
    case MQTT_PUBREC:
    case MQTT_PUBREL:
    case MQTT_PUBCOMP:
        out->ack.packet_id = packet_id;
        out->ack.reason = random_reason(gen, version, type, sender);
        out->ack.properties = random_properties(gen, version, type, sender);
        break;
    case MQTT_SUBSCRIBE:
    case MQTT_UNSUBSCRIBE: {
        uint32_t count = 1 + (uint32_t)check_random_below(random, 4);
        struct span filters[4];
        for (uint32_t i = 0; i < count; i++)
            filters[i] = random_filter(gen);
        uint8_t *at = take(gen, 1024);
        size_t size = 0;
        for (uint32_t i = 0; i < count; i++)
            size += type == MQTT_SUBSCRIBE ? packet_put_subscription(at + size, filters[i], (uint8_t)check_random_below(random, 3))
                                           : packet_put_unsubscription(at + size, filters[i]);
        struct mqtt_properties properties = random_properties(gen, version, type, sender);
        if (type == MQTT_SUBSCRIBE)
            out->subscribe = (struct packet_subscribe){packet_id, count, span_of(at, size), properties};
        else
            out->unsubscribe = (struct packet_unsubscribe){packet_id, count, span_of(at, size), properties};
        break;
    }
    case MQTT_SUBACK:
    case MQTT_UNSUBACK: {
        size_t count = type == MQTT_UNSUBACK && version != MQTT_V5 ? 0 : 1 + check_random_below(random, 5);
        uint8_t *codes = take(gen, count);
        for (size_t i = 0; i < count; i++)
            codes[i] = (uint8_t)random_reason(gen, version, type, sender);
        out->suback = (struct packet_suback){packet_id, span_of(codes, count), random_properties(gen, version, type, sender)};
        break;
    }
    case MQTT_DISCONNECT:
        out->disconnect.reason = random_reason(gen, version, type, sender);
        out->disconnect.properties = random_properties(gen, version, type, sender);
        break;
    case MQTT_AUTH:
        out->auth.reason = random_reason(gen, version, type, sender);
        out->auth.properties = random_properties(gen, version, type, sender);
        out->auth.properties.present |= MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD);
        out->auth.properties.authentication_method = random_string(gen, 0);
        break;
    case MQTT_PINGREQ:
    case MQTT_PINGRESP:
    case MQTT_WILL:
        break;
    }
}

static void test_random_packets_there_and_back(void **state)
{
    (void)state;
    struct generator gen = {.size = 1 << 16};
    gen.arena = malloc(gen.size);
    check_random_init(&gen.random, check_random_seed(5));
    static const enum mqtt_version versions[] = {MQTT_V31, MQTT_V311, MQTT_V5};
    for (unsigned round = 0; round < 300; round++)
        for (unsigned type = 1; type <= 15; type++)
            for (unsigned i = 0; i < 6; i++) {
                enum mqtt_version version = versions[i / 2];
                enum mqtt_sender sender = i % 2;
                const struct mqtt_packet_spec *spec = mqtt_packet_spec(type);
                if (version < spec->version_first || !(sender == C ? spec->from_client : spec->from_server))
                    continue;
                if (type == MQTT_DISCONNECT && sender == S && version != MQTT_V5)
                    continue;
                gen.used = 0;
                struct packet packet;
                random_packet(&gen, &packet, type, version, sender);
                check_again(spec->name, &packet, version, sender, UINT32_MAX);
                if (round % 30 == 0) {
                    uint32_t size = packet_encode_size(&packet, version, UINT32_MAX);
                    struct exact exact = {malloc(size), size};
                    packet_encode(exact.data, &packet, version, UINT32_MAX);
                    check_truncated(spec->name, version, sender, &exact);
                    free(exact.data);
                }
            }
    free(gen.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connect_by_hand),
        cmocka_unit_test(test_packets_by_hand),
        cmocka_unit_test(test_encoding_gives_the_bytes_decoded),
        cmocka_unit_test(test_connect_fields),
        cmocka_unit_test(test_subscription_options),
        cmocka_unit_test(test_peeking_at_the_client_id),
        cmocka_unit_test(test_connack_in_each_version_s_form),
        cmocka_unit_test(test_older_versions_leave_out_what_they_do_not_have),
        cmocka_unit_test(test_reason_string_and_user_properties_give_way_MQTT_3_4_2_2_and_17_others),
        cmocka_unit_test(test_short_acknowledgements),
        cmocka_unit_test(test_publish_heads),
        cmocka_unit_test(test_payloads_at_the_edges_of_the_length_field),
        cmocka_unit_test(test_random_packets_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
