#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist/comm.h"
#include "tests/support/comm_conformance.h"

static void test_self_conforms(void **state)
{
    (void)state;
    tess_comm *comm = NULL;
    assert_int_equal(tess_comm_create_self(&comm), TESS_OK);
    assert_string_equal(tess_comm_name(comm), "self");
    assert_int_equal(tess_comm_world(comm), 1);
    assert_int_equal(comm_conformance(comm), 0);
    tess_comm_destroy(&comm);
    assert_null(comm);
    tess_comm_destroy(&comm);
}

static void test_spy_of_self_conforms(void **state)
{
    (void)state;
    tess_comm *self = NULL;
    tess_comm *spy = NULL;
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    assert_int_equal(tess_comm_create_spy(self, &spy), TESS_OK);
    assert_string_equal(tess_comm_name(spy), "spy(self)");
    assert_int_equal(comm_conformance(spy), 0);
    tess_comm_destroy(&spy);
    tess_comm_destroy(&self);
}

static void test_group_of_self_conforms(void **state)
{
    (void)state;
    tess_comm *self = NULL;
    tess_comm *group = NULL;
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    assert_int_equal(tess_comm_split_group(self, 1, &group), TESS_OK);
    assert_int_equal(comm_conformance(group), 0);
    tess_comm_destroy(&group);
    tess_comm_destroy(&self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self_conforms),
        cmocka_unit_test(test_spy_of_self_conforms),
        cmocka_unit_test(test_group_of_self_conforms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
