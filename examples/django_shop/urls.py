"""The shop's two pages, and its views."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from .models import Order
from .tasks import pack


@csrf_exempt
@require_POST
@transaction.atomic
def buy(request: HttpRequest, item: str) -> JsonResponse:
    """Save the order, and send its task when it is committed: sooner a worker wouldn't find it."""
    order = Order.objects.create(item=item)
    transaction.on_commit(lambda: pack(order.pk))
    if item == "nothing":
        raise ValueError("there is no such item")  # rolled back, and no task is sent
    return JsonResponse({"id": order.pk})


def show(request: HttpRequest, number: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=number)
    return JsonResponse({"item": order.item, "packed": order.packed})


urlpatterns = [path("buy/<str:item>", buy), path("order/<int:number>", show)]
