/* What the reader found in the checkpoint for a session: into its queue or its window of messages in flight, and on to its client.
 *
 * What is wanted no more, cannot be read, or comes too late behind a newer message of its topic is counted, and said in the log where that
 * does not know it. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_READ_BACK_H
#define TIDEGATE_BROKER_CORE_READ_BACK_H

struct shard;
struct store_read;

/* OP_STORE_READ_DONE; taken. */
void read_back_on_answer(struct shard *shard, struct store_read *read);

#endif
