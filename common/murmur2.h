/* The partitioner of Kafka's Java clients: murmur2 of the key, sign bit off, modulo the partition count.
 *
 * Every consumer and stream processor that joins by device relies on the same placement, in Kafka and in the sink's own partitions.
 * Pure. Thread: any. */
#ifndef TIDEGATE_COMMON_MURMUR2_H
#define TIDEGATE_COMMON_MURMUR2_H

#include <stdint.h>

#include "common/bytes.h"

/* 32-bit MurmurHash2 with the seed of org.apache.kafka.common.utils.Utils. */
uint32_t murmur2(struct span key);

/* The partition of a key, 0..partition_count-1; partition_count > 0. */
uint32_t murmur2_partition(struct span key, uint32_t partition_count);

#endif
