# shellcheck shell=sh
# A broker and a sink in direct mode over one data directory: read (".") by scripts/run, scripts/demo and scripts/metrics.
#
#   pair_start BUILD_DIR DATA_DIR    start both with the shipped conf files and wait until they serve; sets broker_pid, sink_pid and, from the
#                                    files that they write, mqtt_address, mqtt_port, metrics_port, query_port. Returns 1 when one of them ended;
#                                    it has been said why, and the other is stopped.
#   pair_check                       0 while both live; otherwise says which ended, with its last log lines, and returns 1
#   pair_stop                        stop both in order (first the broker, so that the sink gets its last records); 1 when one ended with an error
#
# Log lines go to DATA_DIR/broker.log and DATA_DIR/sink.log. The caller may set TIDEGATE_... variables: they override the conf files.

broker_pid=""
sink_pid=""

# A session of its own: Ctrl-C reaches the script alone, which then stops both in order.
pair_spawn() { # LOG COMMAND...
    pair_log=$1
    shift
    setsid "$@" </dev/null >>"$pair_log" 2>&1 &
}

pair_ended() { # PROGRAM LOG FROM_LINE PID
    pair_code=0
    wait "$4" || pair_code=$?
    if [ $pair_code -gt 128 ]; then pair_how="was killed by signal $((pair_code - 128))"; else pair_how="ended with status $pair_code"; fi
    echo "$1 $pair_how. Its last log lines ($2):" >&2
    tail -n "+$(($3 + 1))" "$2" | tail -n 12 | sed 's/^/    /' >&2
    if tail -n "+$(($3 + 1))" "$2" | grep -q 'Address already in use'; then
        if [ "$1" = tidegate-broker ]; then
            echo "A port is taken. Choose others: in conf/broker.conf \`listener\` and \`http_listener\`, or in the environment, for example" >&2
            echo "    TIDEGATE_LISTENER='1884 127.0.0.1' TIDEGATE_HTTP_LISTENER=127.0.0.1:1881 sh scripts/run" >&2
        else
            echo "A port is taken. Choose another: in conf/sink.conf \`http_port\`, or in the environment, for example" >&2
            echo "    TIDEGATE_HTTP_PORT=9802 sh scripts/run" >&2
        fi
    fi
}

pair_lives() { # PID: not ended (kill -0 alone takes a zombie for alive)
    kill -0 "$1" 2>/dev/null && [ "$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null)" != Z ]
}

pair_check() {
    if [ -n "$broker_pid" ] && ! pair_lives "$broker_pid"; then
        pair_ended tidegate-broker "$pair_data/broker.log" "$pair_broker_from" "$broker_pid"
        broker_pid=""
        return 1
    fi
    if [ -n "$sink_pid" ] && ! pair_lives "$sink_pid"; then
        pair_ended tidegate-sink "$pair_data/sink.log" "$pair_sink_from" "$sink_pid"
        sink_pid=""
        return 1
    fi
}

pair_wait() { # FILE: until it is there and newer than this start
    while [ -z "$(find "$1" -newer "$pair_data/.started" 2>/dev/null)" ]; do
        pair_check || return 1
        sleep 0.05
    done
}

pair_start() {
    pair_build=$1
    mkdir -p "$2"
    pair_data=$(cd "$2" && pwd)
    touch "$pair_data/broker.log" "$pair_data/sink.log"
    touch "$pair_data/.started"
    pair_broker_from=$(wc -l <"$pair_data/broker.log")
    pair_sink_from=$(wc -l <"$pair_data/sink.log")
    TIDEGATE_PERSISTENCE_LOCATION="$pair_data/broker" pair_spawn "$pair_data/broker.log" "$pair_build/tidegate-broker" -c conf/broker.conf
    broker_pid=$!
    pair_wait "$pair_data/broker/listeners" || { pair_stop || true; return 1; }
    TIDEGATE_DATA_DIRECTORY="$pair_data/sink" TIDEGATE_BROKER_LOG="$pair_data/broker/log" \
        pair_spawn "$pair_data/sink.log" "$pair_build/tidegate-sink" -c conf/sink.conf
    sink_pid=$!
    pair_wait "$pair_data/sink/http.port" || { pair_stop || true; return 1; }
    # shellcheck disable=SC2034 # for the caller
    {
        mqtt_address=$(awk '$1 == "tcp" { print $2; exit }' "$pair_data/broker/listeners")
        mqtt_port=$(awk '$1 == "tcp" { print $3; exit }' "$pair_data/broker/listeners")
        metrics_port=$(awk '$1 == "http" { print $3; exit }' "$pair_data/broker/listeners")
        query_port=$(cat "$pair_data/sink/http.port")
    }
}

pair_end() { # PID
    kill -TERM "$1" 2>/dev/null || true
    wait "$1"
}

pair_stop() {
    pair_status=0
    if [ -n "$broker_pid" ]; then pair_end "$broker_pid" || pair_status=1; fi
    if [ -n "$sink_pid" ]; then pair_end "$sink_pid" || pair_status=1; fi
    broker_pid=""
    sink_pid=""
    return $pair_status
}
