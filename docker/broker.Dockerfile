# tidegate-broker: built from this tree on Debian 12, shipped with its run-time libraries alone.
#   docker build -f docker/broker.Dockerfile -t tidegate-broker --build-arg COMMIT="$(git describe --always)" .
#   docker run -p 1883:1883 -v tidegate-broker:/var/lib/tidegate/broker tidegate-broker
# Other options: -e TIDEGATE_<KEY IN UPPER CASE>=..., or -v "$PWD/my.conf:/etc/tidegate/broker.conf:ro".
FROM debian:12 AS build
ARG COMMIT=unknown
WORKDIR /src
COPY . .
RUN sh scripts/setup build
RUN make MODE=release COMMIT="$COMMIT" build/release/tidegate-broker \
    && install -D -m 755 build/release/tidegate-broker /out/usr/bin/tidegate-broker \
    && install -D -m 644 conf/broker.conf /out/etc/tidegate/broker.conf

FROM debian:12-slim
# Versions come from the stable release; its security updates are wanted, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libuv1 libmbedtls14 liblz4-1 liblmdb0 libck0 libjemalloc2 libmicrohttpd12 libxxhash0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tidegate \
    && install -d -o tidegate -g tidegate /var/lib/tidegate /var/lib/tidegate/broker
COPY --from=build /out/ /
# On all of the container's addresses: what reaches them is decided by -p and the container network. Clients need no password in this version.
ENV TIDEGATE_LISTENER=1883 TIDEGATE_HTTP_LISTENER=0.0.0.0:1880
USER 10001:10001
WORKDIR /var/lib/tidegate
VOLUME /var/lib/tidegate/broker
EXPOSE 1883 1880
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tidegate-broker"]
CMD ["-c", "/etc/tidegate/broker.conf"]
