"""The order of starts at boot, from what Compose has written down."""

from agent.shutdown.order import Waiting, rounds, to_be_healthy


def service(name: str, depends_on: str = "", project: str = "shop") -> Waiting:
    labels = {
        "com.docker.compose.project": project,
        "com.docker.compose.service": name,
        "com.docker.compose.depends_on": depends_on,
    }
    return Waiting(name * 8, f"{project}-{name}-1", labels)


def names(*waiting: Waiting) -> list[list[str]]:
    return [[one.name for one in now] for now in rounds(waiting)]


def test_each_comes_after_those_that_it_depends_on() -> None:
    web, api = service("web", "api:service_started:false"), service("api", "db:service_healthy:true,cache:x:false")
    assert names(web, service("cache"), api, service("db")) == [
        ["shop-cache-1", "shop-db-1"],
        ["shop-api-1"],
        ["shop-web-1"],
    ]


def test_what_is_not_to_be_started_is_not_waited_for_nor_is_the_same_name_in_another_project() -> None:
    assert names(service("web", "db:service_started:false"), service("db", project="other")) == [
        ["other-db-1", "shop-web-1"]
    ]


def test_a_circle_is_broken() -> None:
    assert names(service("a", "b"), service("b", "a")) == [["shop-a-1"], ["shop-b-1"]]


def test_those_without_compose_are_all_at_once() -> None:
    assert names(Waiting("1", "one", {}), Waiting("2", "two", {})) == [["one", "two"]]


def test_who_has_to_be_healthy_is_known() -> None:
    assert to_be_healthy([service("api", "db:service_healthy:true,cache:service_started:false")]) == {("shop", "db")}
