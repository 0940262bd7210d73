#!/bin/sh
# A broker that really runs: mosquitto's own clients over TCP and TLS, QoS 0 to 2, retained, will, offline queue, refusals, metrics, kill -9.
# usage: broker_smoke.sh BROKER [SHARDS]
# For other scripts: start with port 0, then read `listeners` in persistence_location ("protocol address port" a line); it is there once the
# broker serves, and gone after an orderly stop.
set -u
broker=$1
shards=${2:-1}
dir=$(mktemp -d)
pid=
failed=0
trap '[ -n "$pid" ] && kill -9 "$pid" 2>/dev/null; rm -rf "$dir"' EXIT

say() { echo "smoke($shards): $*"; }
expect() { # name wanted got
    if [ "$2" = "$3" ]; then say "ok: $1"; else say "FAILED: $1: wanted <$2>, got <$3>"; failed=1; fi
}

openssl ecparam -name prime256v1 -genkey -noout -out "$dir/server.key" 2>/dev/null
openssl req -x509 -new -key "$dir/server.key" -out "$dir/server.crt" -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null
cat >"$dir/broker.conf" <<EOF
shards $shards
persistence_location $dir/data/
http_listener 127.0.0.1:0
log_max_size 64MiB
log_segment_size 4MiB
connect_timeout 2s
telemetry fleet/{device}/telemetry
listener 0 127.0.0.1
allow_anonymous true
max_connections 50
listener 0 127.0.0.1
certfile $dir/server.crt
keyfile $dir/server.key
listener 0 127.0.0.1
max_connections 0
EOF

start() {
    "$broker" -c "$dir/broker.conf" 2>>"$dir/log" &
    pid=$!
    for _ in $(seq 200); do [ -s "$dir/data/listeners" ] && break; sleep 0.05; done
    port=$(awk '$1=="tcp"{print $3; exit}' "$dir/data/listeners")
    full_port=$(awk '$1=="tcp"{p=$3} END{print p}' "$dir/data/listeners")
    tls_port=$(awk '$1=="tls"{print $3}' "$dir/data/listeners")
    http_port=$(awk '$1=="http"{print $3}' "$dir/data/listeners")
}
pub() { timeout 10 mosquitto_pub -h 127.0.0.1 -p "$port" "$@"; }
sub() { timeout 10 mosquitto_sub -h 127.0.0.1 -p "$port" "$@"; }
metric() { curl -s "http://127.0.0.1:$http_port/metrics" | awk -v name="$1" 'index($0, name " ") == 1 {print $2}'; }

start
for version in mqttv31 mqttv311 mqttv5; do
    for qos in 0 1 2; do
        sub -V $version -i "s-$version-$qos" -t "a/$version/+" -q $qos -C 20 >"$dir/out" &
        reader=$!
        sleep 0.3
        seq 20 | pub -V $version -i "p-$version-$qos" -t "a/$version/x" -q $qos -l
        wait $reader
        expect "$version qos $qos delivers 20 in order" "$(seq 20 | tr '\n' ' ')" "$(tr '\n' ' ' <"$dir/out")"
    done
done

timeout 10 mosquitto_sub -h 127.0.0.1 -p "$tls_port" --cafile "$dir/server.crt" -t 'tls/#' -q 1 -C 10 >"$dir/out" &
reader=$!
sleep 0.5
head -c 200000 /dev/zero | tr '\0' x >"$dir/large"
timeout 10 mosquitto_pub -h 127.0.0.1 -p "$tls_port" --cafile "$dir/server.crt" -t tls/a -q 1 -f "$dir/large"
for i in $(seq 9); do timeout 10 mosquitto_pub -h 127.0.0.1 -p "$tls_port" --cafile "$dir/server.crt" -t tls/b -q 1 -m "$i"; done
wait $reader
expect "TLS delivers a large message and nine small ones" 200019 "$(wc -c <"$dir/out" | tr -d ' ')"

pub -t keep/x -q 1 -r -m kept
expect "a retained message comes to a later subscriber" kept "$(sub -t keep/x -C 1)"

sub -i sleeper -c -t 'night/#' -q 1 -E
for i in 1 2 3; do pub -t night/x -q 1 -m "$i"; done
expect "an offline session gets what was queued" "1 2 3 " "$(sub -i sleeper -c -t 'night/#' -q 1 -C 3 | tr '\n' ' ')"

sub -t will/x -C 1 >"$dir/out" &
reader=$!
sleep 0.3
timeout 1 mosquitto_sub -h 127.0.0.1 -p "$port" -i victim -t none --will-topic will/x --will-payload gone -k 60 &
victim=$!
sleep 0.3
# A second connection of the same client id takes over: the first one's will is published [MQTT-3.1.4-3].
timeout 1 mosquitto_sub -h 127.0.0.1 -p "$port" -i victim -t none
wait $victim $reader
expect "the will of a client taken over is published" gone "$(cat "$dir/out")"

# mosquitto_pub's exit status is no help here: look at what it says.
expect "a full listener refuses with a reason (MQTT 5)" "Connection error: Quota exceeded" \
    "$(timeout 10 mosquitto_pub -h 127.0.0.1 -p "$full_port" -V mqttv5 -t a -m b 2>&1 | head -1)"
expect "a full listener refuses with code 3 (3.1.1)" "Connection error: Connection Refused: broker unavailable." \
    "$(timeout 10 mosquitto_pub -h 127.0.0.1 -p "$full_port" -t a -m b 2>&1 | head -1)"

# Not MQTT, and nothing at all: both are closed, and counted.
printf 'GET / HTTP/1.0\r\n\r\n' | timeout 5 openssl s_client -quiet -connect "127.0.0.1:$tls_port" -servername localhost >/dev/null 2>&1
printf 'GET / HTTP/1.0\r\n\r\n' | timeout 5 curl -s --max-time 3 "http://127.0.0.1:$port/" >/dev/null 2>&1
sleep 0.2
expect "what is not CONNECT is counted" 1 "$(metric 'tidegate_door_refused_connections_total{listener="0",reason="not_connect"}')"
timeout 5 python3 -c "
import socket
s = socket.create_connection(('127.0.0.1', $port))
s.settimeout(4)
assert s.recv(1) == b''
" && say "ok: a silent connection is closed after connect_timeout" || { say "FAILED: silent connection"; failed=1; }

pub -t fleet/d1/telemetry -q 1 -m '{"v":1}'
expect "telemetry is logged" 1 "$(metric tidegate_telemetry_logged_total)"
curl -s "http://127.0.0.1:$http_port/metrics" >"$dir/metrics"
if command -v promtool >/dev/null; then
    promtool check metrics <"$dir/metrics" >"$dir/out" 2>&1
    expect "promtool has no complaint" "" "$(cat "$dir/out")"
fi
expect "healthz" '{"problems":[],"status":"ok"}' "$(curl -s "http://127.0.0.1:$http_port/healthz")"

"$broker" -c "$dir/broker.conf" >"$dir/out" 2>&1
expect "a second broker on the same data directory is refused" 1 $?
grep -q "$pid" "$dir/out" && say "ok: and told who holds it" || { say "FAILED: no pid in: $(cat "$dir/out")"; failed=1; }

kill -9 "$pid"
wait "$pid" 2>/dev/null
rm -f "$dir/data/listeners"
start
pub -t fleet/d1/telemetry -q 1 -m '{"v":2}'
expect "starts again after kill -9" 0 $?
sub -V mqttv5 -t never -C 1 >"$dir/out" 2>&1 &
reader=$!
sleep 0.3
kill -TERM "$pid"
wait "$pid"
expect "exit status after SIGTERM" 0 $?
pid=
wait $reader
[ -e "$dir/data/listeners" ] && { say "FAILED: listeners file is left behind"; failed=1; }
grep -E "ERROR|Sanitizer|runtime error|CHECK" "$dir/log" && failed=1
[ $failed -eq 0 ] && say "all passed" || { say "see above; log:"; tail -20 "$dir/log"; }
exit $failed
