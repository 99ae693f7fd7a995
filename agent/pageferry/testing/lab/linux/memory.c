/* Memory that is rewritten for ever in generations, so that a page that fell back is found. */
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages before `position` have the generation under way, the others the one before. */
static struct stamp *memory;
static uint64_t pages, generation, position, touches, pace;
static bool writing;
static pthread_t writer;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define STAMPS (PAGE / sizeof(struct stamp))

static void write_page(uint64_t page)
{
	struct stamp *at = memory + page * STAMPS;

	for (size_t i = 0; i < STAMPS; i++)
		at[i] = (struct stamp){page, generation};
	touches++;
}

static void write_next(void)
{
	if (position == pages) {
		position = 0;
		generation++;
	}
	write_page(position++);
}

static void *write_without_end(void *unused)
{
	for (;;) {
		pthread_mutex_lock(&lock);
		if (!writing) {
			pthread_mutex_unlock(&lock);
			return unused;
		}
		for (uint64_t i = 0; i < (pace ? pace : 64); i++)
			write_next();
		pthread_mutex_unlock(&lock);
		/* Also without a pace: who wants to verify must get the lock. */
		usleep(pace ? 1000 : 1);
	}
}

bool memory_write(const char *command)
{
	uint64_t wanted = parameter(command, "mib", 32) * MIB / PAGE;
	void *fresh;

	memory_stop();
	if (memory)
		munmap(memory, pages * PAGE);
	memory = NULL;
	fresh = mmap(NULL, wanted * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fresh == MAP_FAILED) {
		say("ERROR %llu pages of memory: %s", (unsigned long long)wanted, strerror(errno));
		return false;
	}
	memory = fresh;
	pages = wanted;
	pace = parameter(command, "pace", 16);
	generation = 1;
	for (position = 0; position < pages; position++)
		write_page(position);
	writing = true;
	pthread_create(&writer, NULL, write_without_end, NULL);
	return true;
}

void memory_stop(void)
{
	bool was;

	pthread_mutex_lock(&lock);
	was = writing;
	writing = false;
	pthread_mutex_unlock(&lock);
	if (was)
		pthread_join(writer, NULL);
}

void memory_verify(void)
{
	uint64_t bad = 0;

	pthread_mutex_lock(&lock);
	for (uint64_t page = 0; memory && page < pages; page++) {
		const struct stamp *at = memory + page * STAMPS;
		uint64_t want = page < position ? generation : generation - 1;
		size_t i = 0;

		while (i < STAMPS && at[i].salt == page && at[i].number == want)
			i++;
		if (i < STAMPS && bad++ < MAX_BAD_LINES)
			say("B page=%llu holds page=%llu generation=%llu, not %llu",
			    (unsigned long long)page, (unsigned long long)at[i].salt,
			    (unsigned long long)at[i].number, (unsigned long long)want);
	}
	say("VERIFIED pages=%llu bad=%llu generation=%llu", (unsigned long long)(memory ? pages : 0),
	    (unsigned long long)bad, (unsigned long long)generation);
	pthread_mutex_unlock(&lock);
}

void memory_report(void)
{
	uint64_t done, of_generation;
	bool any;

	pthread_mutex_lock(&lock);
	any = writing;
	done = touches;
	of_generation = generation;
	pthread_mutex_unlock(&lock);
	if (any)
		say("S memory=%llu generation=%llu touches=%llu", (unsigned long long)pages,
		    (unsigned long long)of_generation, (unsigned long long)done);
}
