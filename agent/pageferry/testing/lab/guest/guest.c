/*
 * The freestanding guest: memory whose every byte is known, and a clock on it.
 *
 * Three regions, from 4 MiB up, in this order; everything above them is never touched (holes):
 *   hot   rewritten for ever in a pseudo-random order, a new generation each pass
 *   cold  filled once; word j of page p is pattern(p, seed) + (j mod period) * STEP
 *   zero  touched once, all zero
 * A hot page's first two words are its number and its generation, the rest as in a cold page with
 * the generation as the seed. Memory is thus wholly a function of the parameters and of (generation,
 * position in the pass), and verification knows what each page must hold, to the word.
 *
 * Parameters, on the command line: cold_mib, hot_mib, zero_mib, seed, pace (hot pages rewritten each
 * millisecond; 0: without a pause), repeat (how often a cold page holds the same words over, a power
 * of two: period = words of a page / repeat. 1: a compressor finds nothing; 4: it saves some 3/4).
 *
 * Over the serial port, one line each:
 *   READY hot=A+N cold=A+N zero=A+N khz=K     region addresses and pages; TSC rate
 *   S seq= tsc= gen= touches= run= hist=E.S:N,...
 *       every 100 ms: batches by duration in TSC ticks, since the last such line. Bucket E.S holds
 *       durations d with E = index of the top bit, S = the 4 bits below it.
 *   V region=R page=N addr=A word=J want=W got=G     the first bad pages of a verification
 *   VERIFIED cold=N/B hot=N/B zero=N/B gen= touches=   pages checked / bad
 *   PANIC reason
 * Commands, one character each: v verify, s stop the hot writes, r run them, p report now.
 */
#include "machine.h"

#define PAGE 4096u
#define WORDS (PAGE / 4)
#define MIB (1024u * 1024u)
#define STEP 0x9e3779b9u /* odd, so that the words of one page differ */
#define FIRST_ADDRESS (4u * MIB)
#define BATCH_PAGES 64u
#define TIMER_HZ 1000u
#define REPORT_MS 100u
#define MAX_BAD_LINES 8u
#define MULTIBOOT_BOOTED 0x2badb002u

struct multiboot {
	uint32_t flags, mem_lower_kib, mem_upper_kib, boot_device, command_line;
};

struct region {
	const char *name;
	uint32_t address, pages;
};

struct check {
	uint32_t pages, bad;
};

static struct region hot = {.name = "hot"}, cold = {.name = "cold"}, zero = {.name = "zero"};
static uint32_t seed = 1, pace = BATCH_PAGES, period = WORDS, khz;

/* The pass under way writes `generation`; `position` pages of it are done. */
static uint32_t generation = 1, position, order_value, order_mask;
static uint64_t touches;
static bool running = true;
static uint32_t histogram[64 * 16];
static uint32_t report_sequence;
static uint32_t bad_lines;

volatile uint32_t timer_ticks;
extern char image_end[];
extern void timer_entry(void), spurious_entry(void), exception_entry(void);

/* ---- output ---- */

static void put(const char *text)
{
	while (*text)
		serial_put(*text++);
}

static void put_hex(uint64_t value)
{
	bool started = false;

	for (int shift = 60; shift >= 0; shift -= 4) {
		uint32_t digit = (uint32_t)(value >> shift) & 15;

		started |= digit || shift == 0;
		if (started)
			serial_put("0123456789abcdef"[digit]);
	}
}

static void put_number(uint32_t value)
{
	char digits[10];
	int n = 0;

	do
		digits[n++] = (char)('0' + value % 10);
	while (value /= 10);
	while (n)
		serial_put(digits[--n]);
}

static void put_field(const char *name, uint32_t value)
{
	put(name);
	put_number(value);
}

static void __attribute__((noreturn)) panic(const char *reason)
{
	put("\nPANIC ");
	put(reason);
	put("\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}

void guest_exception(void)
{
	panic("processor exception");
}

/* ---- contents ---- */

/* A bijection of 32-bit values (the finalizer of MurmurHash3), so no two pages share a pattern. */
static uint32_t mix(uint32_t x)
{
	x = (x ^ x >> 16) * 0x85ebca6bu;
	x = (x ^ x >> 13) * 0xc2b2ae35u;
	return x ^ x >> 16;
}

static uint32_t pattern(uint32_t page, uint32_t salt)
{
	return mix(page ^ mix(salt));
}

static uint32_t *page_words(const struct region *region, uint32_t page)
{
	return (uint32_t *)(region->address + page * PAGE);
}

static void write_words(uint32_t *words, uint32_t from, uint32_t value)
{
	value += from * STEP;
	for (uint32_t j = from; j < WORDS; j++, value += STEP)
		words[j] = value;
}

static void write_cold(uint32_t page)
{
	uint32_t *words = page_words(&cold, page);

	for (uint32_t first = 0; first < WORDS; first += period) {
		uint32_t value = pattern(page, seed);

		for (uint32_t j = first; j < first + period; j++, value += STEP)
			words[j] = value;
	}
}

static void write_hot(uint32_t page, uint32_t new_generation)
{
	uint32_t *words = page_words(&hot, page);

	words[0] = page;
	words[1] = new_generation;
	write_words(words, 2, pattern(page, new_generation));
}

/* ---- the hot set's order: a full-period generator over the next power of two ---- */

static void order_begin(uint32_t for_generation)
{
	order_value = mix(for_generation) & order_mask;
}

static uint32_t order_next(void)
{
	do
		order_value = (order_value * 1664525u + 1013904223u) & order_mask;
	while (order_value >= hot.pages);
	return order_value;
}

static void touch_batch(void)
{
	uint64_t begin = read_tsc(), ticks;
	uint32_t exponent;

	for (uint32_t i = 0; i < BATCH_PAGES; i++) {
		if (position == hot.pages) {
			generation++;
			position = 0;
			order_begin(generation);
		}
		write_hot(order_next(), generation);
		position++;
	}
	ticks = read_tsc() - begin;
	touches += BATCH_PAGES;
	if (ticks < 16)
		ticks = 16;
	exponent = ticks >> 32 ? 63u - (uint32_t)__builtin_clz((uint32_t)(ticks >> 32))
			       : 31u - (uint32_t)__builtin_clz((uint32_t)ticks);
	histogram[exponent * 16 + ((uint32_t)(ticks >> (exponent - 4)) & 15)]++;
}

/* ---- reports ---- */

static void report(void)
{
	bool first = true;

	put_field("S seq=", report_sequence++);
	put(" tsc=");
	put_hex(read_tsc());
	put_field(" gen=", generation);
	put(" touches=");
	put_hex(touches);
	put_field(" run=", running);
	put(" hist=");
	for (uint32_t i = 0; i < 64 * 16; i++) {
		if (!histogram[i])
			continue;
		put(first ? "" : ",");
		first = false;
		put_number(i / 16);
		put(".");
		put_number(i % 16);
		put(":");
		put_number(histogram[i]);
		histogram[i] = 0;
	}
	put("\n");
}

static void put_region(const struct region *region)
{
	put(" ");
	put(region->name);
	put("=");
	put_hex(region->address);
	put("+");
	put_number(region->pages);
}

/* ---- verification ---- */

static void say_bad(const struct region *region, uint32_t page, uint32_t word, uint32_t want)
{
	uint32_t *words = page_words(region, page);

	if (bad_lines++ >= MAX_BAD_LINES)
		return;
	put("V region=");
	put(region->name);
	put_field(" page=", page);
	put(" addr=");
	put_hex((uint32_t)words);
	put_field(" word=", word);
	put(" want=");
	put_hex(want);
	put(" got=");
	put_hex(words[word]);
	put("\n");
}

/* Check the words from `from` to `end` of one page: value, value + step, ... Say so once when one is
 * wrong. */
static bool words_hold(const struct region *region, uint32_t page, uint32_t from, uint32_t end,
		       uint32_t value, uint32_t step)
{
	const uint32_t *words = page_words(region, page);

	for (uint32_t j = from; j < end; j++, value += step) {
		if (words[j] != value) {
			say_bad(region, page, j, value);
			return false;
		}
	}
	return true;
}

static bool cold_page_holds(uint32_t page)
{
	uint32_t value = pattern(page, seed);

	for (uint32_t first = 0; first < WORDS; first += period)
		if (!words_hold(&cold, page, first, first + period, value, STEP))
			return false;
	return true;
}

static bool hot_page_holds(uint32_t page, uint32_t want_generation)
{
	const uint32_t *words = page_words(&hot, page);

	if (words[0] != page) {
		say_bad(&hot, page, 0, page);
		return false;
	}
	if (words[1] != want_generation) {
		say_bad(&hot, page, 1, want_generation);
		return false;
	}
	return words_hold(&hot, page, 2, WORDS, pattern(page, want_generation) + 2 * STEP, STEP);
}

static struct check verify_cold(void)
{
	struct check check = {cold.pages, 0};

	for (uint32_t page = 0; page < cold.pages; page++)
		check.bad += !cold_page_holds(page);
	return check;
}

static struct check verify_zero(void)
{
	struct check check = {zero.pages, 0};

	for (uint32_t page = 0; page < zero.pages; page++)
		check.bad += !words_hold(&zero, page, 0, WORDS, 0, 0);
	return check;
}

/* Walk this pass's order: the first `position` pages have its generation, the others the last. */
static struct check verify_hot(void)
{
	struct check check = {hot.pages, 0};
	uint32_t saved = order_value;

	order_begin(generation);
	for (uint32_t i = 0; i < hot.pages; i++)
		check.bad += !hot_page_holds(order_next(), i < position ? generation : generation - 1);
	order_value = saved;
	return check;
}

static void put_check(const char *name, struct check check)
{
	put_field(name, check.pages);
	put_field("/", check.bad);
}

static void verify(void)
{
	bad_lines = 0;
	struct check of_hot = verify_hot(), of_cold = verify_cold(), of_zero = verify_zero();

	put("VERIFIED");
	put_check(" cold=", of_cold);
	put_check(" hot=", of_hot);
	put_check(" zero=", of_zero);
	put_field(" gen=", generation);
	put(" touches=");
	put_hex(touches);
	put("\n");
}

/* ---- start ---- */

static bool starts_with(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return false;
	return true;
}

/* The number after "name=" on the command line, or `otherwise`. */
static uint32_t parameter(const char *line, const char *name, uint32_t otherwise)
{
	size_t length = 0;

	while (name[length])
		length++;
	for (const char *at = line; *at; at++) {
		if ((at != line && at[-1] != ' ') || !starts_with(at, name) || at[length] != '=')
			continue;
		otherwise = 0;
		for (at += length + 1; *at >= '0' && *at <= '9'; at++)
			otherwise = otherwise * 10 + (uint32_t)(*at - '0');
		return otherwise;
	}
	return otherwise;
}

static void lay_out(const struct multiboot *info)
{
	const char *line = (const char *)info->command_line;
	struct region *regions[] = {&hot, &cold, &zero};
	uint32_t sizes_mib[] = {parameter(line, "hot_mib", 8), parameter(line, "cold_mib", 16),
				parameter(line, "zero_mib", 0)};
	uint64_t end = FIRST_ADDRESS;
	uint32_t repeat = parameter(line, "repeat", 1);

	seed = parameter(line, "seed", seed);
	pace = parameter(line, "pace", pace);
	if (!repeat || repeat > WORDS || (repeat & (repeat - 1)))
		panic("repeat must be a power of two, at most the words of a page");
	period = WORDS / repeat;
	if ((uint32_t)image_end > FIRST_ADDRESS)
		panic("image too large");
	for (int i = 0; i < 3; i++) {
		regions[i]->address = (uint32_t)end;
		regions[i]->pages = sizes_mib[i] * (MIB / PAGE);
		end += (uint64_t)sizes_mib[i] * MIB;
	}
	/* mem_upper counts from 1 MiB to the first hole below 4 GiB. */
	if (end > MIB + (uint64_t)info->mem_upper_kib * 1024)
		panic("regions larger than memory below 4 GiB");
	if (!hot.pages)
		panic("hot_mib must be at least 1");
	for (order_mask = 1; order_mask < hot.pages; order_mask <<= 1)
		;
	order_mask--;
}

static void fill(void)
{
	for (uint32_t page = 0; page < cold.pages; page++)
		write_cold(page);
	for (uint32_t page = 0; page < zero.pages; page++)
		for (uint32_t j = 0; j < WORDS; j++)
			((volatile uint32_t *)page_words(&zero, page))[j] = 0;
	for (uint32_t page = 0; page < hot.pages; page++)
		write_hot(page, generation);
	generation++;
	position = 0;
	order_begin(generation);
}

static void load_interrupt_table(void)
{
	static struct {
		uint16_t low, selector, flags, high;
	} table[48];
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = {sizeof table - 1, (uint32_t)table};

	for (uint32_t i = 0; i < 48; i++) {
		void (*entry)(void) = i < 32 ? exception_entry : i == 32 ? timer_entry : spurious_entry;

		table[i].low = (uint16_t)(uint32_t)entry;
		table[i].selector = 0x08;
		table[i].flags = 0x8e00;
		table[i].high = (uint16_t)((uint32_t)entry >> 16);
	}
	__asm__ volatile("lidt %0" : : "m"(pointer));
}

static void obey(int command)
{
	switch (command) {
	case 'v':
		verify();
		break;
	case 's':
		running = false;
		report();
		break;
	case 'r':
		running = true;
		report();
		break;
	case 'p':
		report();
		break;
	}
}

/* Rewrite the hot pages that are due: `pace` for each timer tick, in whole batches. */
static void run_hot(void)
{
	static uint32_t seen_ticks, due_pages;
	uint32_t ticks = timer_ticks - seen_ticks;

	seen_ticks += ticks;
	if (!pace) {
		touch_batch();
		return;
	}
	/* What could not be done in time is forgone: a stalled guest must not catch up in a burst. */
	due_pages += pace * (ticks < 4 ? ticks : 4);
	for (; due_pages >= BATCH_PAGES; due_pages -= BATCH_PAGES)
		touch_batch();
}

void guest_main(uint32_t magic, const struct multiboot *info)
{
	uint64_t last_report;

	serial_init();
	if (magic != MULTIBOOT_BOOTED)
		panic("not booted by multiboot");
	lay_out(info);
	load_interrupt_table();
	khz = tsc_khz();
	fill();
	put("READY");
	put_region(&hot);
	put_region(&cold);
	put_region(&zero);
	put_field(" khz=", khz);
	put("\n");
	timer_init(TIMER_HZ);
	last_report = read_tsc();
	for (;;) {
		if (running)
			run_hot();
		obey(serial_get());
		if (read_tsc() - last_report >= (uint64_t)khz * REPORT_MS) {
			last_report = read_tsc();
			report();
		}
		if (!running || pace)
			wait_for_interrupt();
	}
}
