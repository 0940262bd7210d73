# tidegate-sink: built from this tree on Debian 12, shipped with its run-time libraries alone. In direct mode it reads
# the broker's log, so both containers mount the broker's volume.
#   docker build -f docker/sink.Dockerfile -t tidegate-sink --build-arg COMMIT="$(git describe --always)" .
#   docker run -p 127.0.0.1:9801:9801 -v tidegate-broker:/var/lib/tidegate/broker -v tidegate-sink:/var/lib/tidegate/sink tidegate-sink
# The broker's volume is written to: cursor.sink in its log directory is the sink's. Other options: -e TIDEGATE_<KEY IN UPPER CASE>=...
FROM debian:12 AS build
ARG COMMIT=unknown
WORKDIR /src
COPY . .
RUN sh scripts/setup build
RUN make MODE=release COMMIT="$COMMIT" build/release/tidegate-sink \
    && install -D -m 755 build/release/tidegate-sink /out/usr/bin/tidegate-sink \
    && install -D -m 644 conf/sink.conf /out/etc/tidegate/sink.conf

FROM debian:12-slim
# Versions come from the stable release; its security updates are wanted, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends liblz4-1 libck0 libjemalloc2 libmicrohttpd12 libsimdjson14 libxxhash0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tidegate \
    && install -d -o tidegate -g tidegate /var/lib/tidegate /var/lib/tidegate/broker /var/lib/tidegate/sink
COPY --from=build /out/ /
# On all of the container's addresses; queries need no password, so publish the port to trusted networks only.
ENV TIDEGATE_HTTP_ADDRESS=0.0.0.0 TIDEGATE_BROKER_LOG=/var/lib/tidegate/broker/log
USER 10001:10001
WORKDIR /var/lib/tidegate
VOLUME /var/lib/tidegate/sink
EXPOSE 9801
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tidegate-sink"]
CMD ["-c", "/etc/tidegate/sink.conf"]
