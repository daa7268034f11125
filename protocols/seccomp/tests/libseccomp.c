/* Builds a profile by libseccomp and writes its program, for the test beside it.
 *
 * Words on standard input: the default action; then for each rule its action, the number of the call and the number of conditions,
 * and for each condition the argument's index, the comparison (enum scmp_compare) and two values. Exits with 3 where libseccomp refuses a rule. */
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>

int main(void)
{
	uint32_t action;
	if (scanf("%" SCNu32, &action) != 1)
		return 1;
	scmp_filter_ctx filter = seccomp_init(action);
	if (!filter)
		return 2;
	int call;
	unsigned int count;
	while (scanf("%" SCNu32 "%d%u", &action, &call, &count) == 3) {
		struct scmp_arg_cmp conditions[6] = { { 0 } };
		if (count > 6)
			return 1;
		for (unsigned int at = 0; at < count; at++) {
			unsigned int index, comparison;
			if (scanf("%u%u%" SCNu64 "%" SCNu64, &index, &comparison, &conditions[at].datum_a,
				  &conditions[at].datum_b) != 4)
				return 1;
			conditions[at].arg = index;
			conditions[at].op = comparison;
		}
		if (seccomp_rule_add_array(filter, action, call, count, conditions))
			return 3;
	}
	return seccomp_export_bpf(filter, 1) ? 4 : 0;
}
