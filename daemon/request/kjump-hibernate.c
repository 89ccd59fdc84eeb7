// SPDX-License-Identifier: GPL-2.0-or-later
/* kjump-hibernate: asks kjumpd to hibernate, in place of systemd-sleep.
 *
 * systemd-hibernate.service runs this.  It does the same as
 *     kjumpctl hibernate --quiet --ignore-inhibitors --fallback
 * with the same exit status, in a thirtieth of the memory.  A request often comes when memory is
 * full, and this program waits in memory until the cycle ends.  A Python interpreter with its D-Bus
 * library would take 30 MiB, which staging then lacks, and most of a second.
 *
 * If kjumpd is not there at all, this program becomes that kjumpctl, which decides and explains.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <systemd/sd-bus.h>

#include "errors.h" /* ERRORS: {name, exit code}, made from kjump/errors.py */

#define NAME "org.kjump1"
#define PATH "/org/kjump1"
#define INTERFACE "org.kjump1.Manager"
#define PREFIX "org.kjump1.Error."

#ifndef KJUMPCTL
#define KJUMPCTL "/usr/bin/kjumpctl"
#endif
#ifndef SYSTEMD_SLEEP
#define SYSTEMD_SLEEP "/usr/lib/systemd/systemd-sleep"
#endif

enum { OTHER = 1, UNREACHABLE = 69, INTERNAL = 70 };

/* Prints a line to standard error, which is the journal; returns the exit status. */
__attribute__((format(printf, 2, 3))) static int end(int status, const char *format, ...)
{
	va_list arguments;

	fputs("kjump-hibernate: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	return status;
}

/* The exit status of one of our D-Bus errors; OTHER if a newer kjumpd sent it. */
static int status_of(const char *name)
{
	for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
		if (!strcmp(ERRORS[i].name, name))
			return ERRORS[i].status;
	return OTHER;
}

/* Whether a word means no, as systemd reads a boolean.  Unset or any other word does not. */
static int says_no(const char *word)
{
	static const char *const no[] = {"0", "no", "n", "false", "f", "off"};

	for (size_t i = 0; word && i < sizeof no / sizeof *no; i++)
		if (!strcasecmp(word, no[i]))
			return 1;
	return 0;
}

/* Adds a boolean option to the message.  Returns a negative errno if that fails. */
static int add(sd_bus_message *call, const char *name, int value)
{
	return sd_bus_message_append(call, "{sv}", name, "b", value);
}

static int build(sd_bus *bus, sd_bus_message **call)
{
	int error;

	if ((error = sd_bus_message_new_method_call(bus, call, NAME, PATH, INTERFACE,
						    "Hibernate")) < 0 ||
	    (error = sd_bus_message_set_allow_interactive_authorization(*call, 1)) < 0 ||
	    (error = sd_bus_message_open_container(*call, 'a', "{sv}")) < 0 ||
	    (error = add(*call, "fallback", 1)) < 0 ||
	    /* logind has already checked the inhibitors. */
	    (error = add(*call, "ignore-inhibitors", 1)) < 0)
		return error;
	/* Administrators set this for systemd-hibernate.service, where systemd-sleep reads it. */
	if (says_no(getenv("SYSTEMD_SLEEP_FREEZE_USER_SESSIONS")) &&
	    (error = add(*call, "freeze", 0)) < 0)
		return error;
	return sd_bus_message_close_container(*call);
}

/* Reads "fallback" and "what" from the report, an a{sv}; "" if a key is missing. */
static int read_report(sd_bus_message *report, const char **fallback, const char **what)
{
	const char *key, *contents;
	int found;

	*fallback = *what = "";
	if ((found = sd_bus_message_enter_container(report, 'a', "{sv}")) < 0)
		return found;
	while ((found = sd_bus_message_enter_container(report, 'e', "sv")) > 0) {
		const char **wanted = NULL;

		if ((found = sd_bus_message_read_basic(report, 's', &key)) < 0 ||
		    (found = sd_bus_message_peek_type(report, NULL, &contents)) < 0)
			return found;
		if (!strcmp(key, "fallback"))
			wanted = fallback;
		else if (!strcmp(key, "what"))
			wanted = what;
		if (wanted && !strcmp(contents, "s"))
			found = sd_bus_message_read(report, "v", "s", wanted);
		else
			found = sd_bus_message_skip(report, "v");
		if (found < 0 || (found = sd_bus_message_exit_container(report)) < 0)
			return found;
	}
	return found;
}

/* kjumpd is not reachable, so nothing has begun: kjumpctl decides what to do. */
static int by_kjumpctl(void)
{
	execl(KJUMPCTL, KJUMPCTL, "hibernate", "--quiet", "--ignore-inhibitors", "--fallback",
	      (char *)NULL);
	return end(INTERNAL, "%s cannot be started: %s.", KJUMPCTL, strerror(errno));
}

static int by_systemd(const char *what)
{
	end(0, "%s  The kernel's own hibernation is done instead.", what);
	execl(SYSTEMD_SLEEP, SYSTEMD_SLEEP, "hibernate", (char *)NULL);
	return end(INTERNAL, "%s cannot be started: %s.", SYSTEMD_SLEEP, strerror(errno));
}

static int connect_bus(sd_bus **bus)
{
	const char *address = getenv("KJUMP_BUS_ADDRESS"); /* for tests */
	int error;

	if (!address)
		return sd_bus_open_system(bus);
	if ((error = sd_bus_new(bus)) < 0 || (error = sd_bus_set_address(*bus, address)) < 0 ||
	    (error = sd_bus_set_bus_client(*bus, 1)) < 0)
		return error;
	return sd_bus_start(*bus);
}

int main(int count, char **arguments)
{
	sd_bus_error refusal = SD_BUS_ERROR_NULL;
	sd_bus_message *call = NULL, *report = NULL;
	const char *fallback, *what;
	sd_bus *bus = NULL;
	int error;

	(void)arguments;
	if (count > 1)
		return end(2, "This program takes no arguments; see kjumpctl(1).");
	/* Is anyone there?  Once the call is sent, only kjumpd knows how far it came. */
	if (connect_bus(&bus) < 0 ||
	    sd_bus_call_method(bus, NAME, PATH, "org.freedesktop.DBus.Peer", "Ping", NULL, NULL,
			       "") < 0)
		return by_kjumpctl();
	if ((error = build(bus, &call)) < 0)
		return end(INTERNAL, "The request cannot be built: %s.", strerror(-error));
	/* No time limit: the machine may be off for months in between. */
	error = sd_bus_call(bus, call, UINT64_MAX, &refusal, &report);
	if (error < 0) {
		const char *name = refusal.name ? refusal.name : "";
		const char *text = refusal.message ? refusal.message : strerror(-error);

		if (!strncmp(name, PREFIX, strlen(PREFIX))) {
			/* The first line says what happened, the rest what to do; print them as one line. */
			const char *todo = strchr(text, '\n');

			return end(status_of(name + strlen(PREFIX)), "%.*s%s%s",
				   (int)strcspn(text, "\n"), text, todo ? "  " : "",
				   todo ? todo + 1 : "");
		}
		return end(UNREACHABLE, "kjumpd does not answer: %s.", text);
	}
	if ((error = read_report(report, &fallback, &what)) < 0)
		return end(INTERNAL, "kjumpd's report cannot be read: %s.", strerror(-error));
	return *fallback ? by_systemd(what) : 0;
}
